//! The series of some images, and the choice of one.
//!
//! A folder may have a hundred thousand files, so that a file keeps little: facts that images share are kept once for a
//! series.

use std::collections::{HashMap, HashSet};
use std::fs::Metadata;
use std::path::Path;

use super::super::watch::FileWatch;
use super::elements::Extent;
use super::excerpt;
use super::header::{FileHeader, FrameFacts, PixelForm};
use crate::error::{Error, Result};
use crate::volume::Hash;

/// Maximum number of series that a message lists.
const MOST_LISTED: usize = 20;

/// The images of a series, in the order of their files, without copies of the same.
#[derive(Debug)]
pub(super) struct Series {
    uid: String,
    description: String,
    modality: String,
    number: Option<f64>,
    /// `true` if an image has one.
    pub(super) has_modality_table: bool,
    /// That of the first image.
    pub(super) between_slices: Option<f64>,
    /// The different forms of frames, the first of which is that of the first image.
    pub(super) forms: Vec<PixelForm>,
    known: HashMap<PixelForm, u16>,
    /// A file for each image.
    pub(super) files: FileWatch,
    pub(super) images: Vec<Image>,
    /// The frames of all images, image by image.
    pub(super) frames: Vec<FrameFacts>,
    pub(super) extents: Vec<Extent>,
    /// Hashes of the identifiers of instances.
    seen: HashSet<u128>,
}

/// An image file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    /// The number of its form in [`Series::forms`].
    pub(super) form: u16,
    /// The number of its frames.
    pub(super) frames: usize,
    /// For a deflated data set, the first byte of the voxels in it.
    pub(super) inflated: u64,
}

/// All series of some files.
#[derive(Debug, Default)]
pub(super) struct AllSeries {
    all: Vec<Series>,
    by_uid: HashMap<String, usize>,
}

impl AllSeries {
    /// Returns `true` if there is no image.
    pub(super) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Adds an image, unless the same was added before.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if a series has more than 2^16 forms of frames.
    pub(super) fn add(
        &mut self,
        (path, metadata): (&Path, &Metadata),
        header: FileHeader,
    ) -> Result<()> {
        let place = if let Some(&place) = self.by_uid.get(&header.series) {
            place
        } else {
            self.by_uid.insert(header.series.clone(), self.all.len());
            self.all.push(Series::new(&header));
            self.all.len() - 1
        };
        let added = self.all[place].add((path, metadata), header);
        let problem = "its images have too many kinds of frames";
        added.ok_or_else(|| Error::unsupported(path, problem))
    }

    /// Returns the series that `wanted` names: by its unique identifier, or by its number in the list, counted from 1.
    /// Without a wish, there must be only one.
    pub(super) fn choose(self, path: &Path, wanted: Option<&str>) -> Result<Series> {
        let mut all = self.all;
        // The order of the list must not depend on the names of files.
        all.sort_by(|one, other| {
            let number = |series: &Series| series.number.unwrap_or(f64::MAX);
            let by_number = number(one).total_cmp(&number(other));
            by_number.then_with(|| one.uid.cmp(&other.uid))
        });
        let place = match wanted {
            None if all.len() == 1 => Some(0),
            None => None,
            Some(wanted) => {
                let by_uid = all.iter().position(|series| series.uid == wanted);
                let number = wanted.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
                by_uid.or(number.filter(|&n| n < all.len()))
            }
        };
        match place {
            Some(place) => Ok(all.swap_remove(place)),
            None => Err(choice(path, &all, wanted)),
        }
    }
}

/// Returns the error that lists the series.
fn choice(path: &Path, all: &[Series], wanted: Option<&str>) -> Error {
    let mut listed: Vec<String> = all
        .iter()
        .take(MOST_LISTED)
        .enumerate()
        .map(|(n, series)| series.line(n + 1))
        .collect();
    if all.len() > MOST_LISTED {
        listed.push(format!("and {} more", all.len() - MOST_LISTED));
    }
    let problem = match wanted {
        None => format!(
            "it has {} DICOM series: choose one by its number or unique identifier",
            all.len()
        ),
        Some(wanted) => format!("it has no DICOM series {:?}", excerpt(wanted)),
    };
    Error::SeriesChoice {
        path: path.to_path_buf(),
        problem,
        series: listed.join("; "),
    }
}

impl Series {
    fn new(first: &FileHeader) -> Self {
        Self {
            uid: first.series.clone(),
            description: first.description.clone(),
            modality: first.modality.clone(),
            number: first.series_number,
            has_modality_table: false,
            between_slices: first.between_slices,
            forms: Vec::new(),
            known: HashMap::new(),
            files: FileWatch::default(),
            images: Vec::new(),
            frames: Vec::new(),
            extents: Vec::new(),
            seen: HashSet::new(),
        }
    }

    /// Adds an image, unless the same was added before. Returns `None` if there are too many forms.
    fn add(&mut self, (path, metadata): (&Path, &Metadata), header: FileHeader) -> Option<()> {
        let mut instance = Hash::default();
        instance.add(header.instance.as_bytes());
        if !header.instance.is_empty() && !self.seen.insert(instance.0) {
            return Some(());
        }
        let form = if let Some(&form) = self.known.get(&header.form) {
            form
        } else {
            let form = u16::try_from(self.forms.len()).ok()?;
            self.known.insert(header.form.clone(), form);
            self.forms.push(header.form);
            form
        };
        self.has_modality_table |= header.has_modality_table;
        self.files.add(path, metadata);
        self.images.push(Image {
            form,
            frames: header.extents.len(),
            inflated: header.inflated,
        });
        self.frames.extend(header.frames);
        self.extents.extend(header.extents);
        Some(())
    }

    /// Describes the series.
    fn line(&self, n: usize) -> String {
        let clean = |text: &str| -> String {
            let text: String = text.chars().filter(|c| !c.is_control()).collect();
            excerpt(&text)
        };
        format!(
            "{n}: {:?}, {}, {} images of {} x {}, {}",
            clean(&self.description),
            clean(&self.modality),
            self.frames.len(),
            self.forms[0].rows,
            self.forms[0].columns,
            self.uid
                .chars()
                .filter(|c| !c.is_control())
                .take(64)
                .collect::<String>()
        )
    }
}
