//! The series of some images, and the choice of one.

use std::collections::HashSet;
use std::path::Path;

use super::{Image, excerpt};
use crate::error::{Error, Result};

/// Maximum number of series that a message lists.
const MOST_LISTED: usize = 20;

/// Returns the images of the series that `wanted` names: by its unique identifier, or by its number in the list, counted
/// from 1. Without a wish, there must be only one.
pub(super) fn choose(path: &Path, images: Vec<Image>, wanted: Option<&str>) -> Result<Vec<Image>> {
    let mut all: Vec<(String, Vec<Image>)> = Vec::new();
    for image in images {
        match all.iter_mut().find(|(uid, _)| *uid == image.header.series) {
            Some((_, own)) => own.push(image),
            None => all.push((image.header.series.clone(), vec![image])),
        }
    }
    // The order of the list must not depend on the names of files.
    all.sort_by(|(a, one), (b, other)| {
        let number = |images: &[Image]| images[0].header.series_number.unwrap_or(f64::MAX);
        number(one).total_cmp(&number(other)).then_with(|| a.cmp(b))
    });
    let place = match wanted {
        None if all.len() == 1 => Some(0),
        None => None,
        Some(wanted) => {
            let by_uid = all.iter().position(|(uid, _)| uid == wanted);
            let number = wanted.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
            by_uid.or(number.filter(|&n| n < all.len()))
        }
    };
    if let Some(place) = place {
        return Ok(once_each(all.swap_remove(place).1));
    }
    let mut listed: Vec<String> = all
        .iter()
        .take(MOST_LISTED)
        .enumerate()
        .map(|(n, (uid, images))| line(n + 1, uid, images))
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
    Err(Error::SeriesChoice {
        path: path.to_path_buf(),
        problem,
        series: listed.join("; "),
    })
}

/// Returns the images without copies of the same.
fn once_each(mut images: Vec<Image>) -> Vec<Image> {
    let mut seen = HashSet::new();
    images.retain(|image| {
        let instance = &image.header.instance;
        instance.is_empty() || seen.insert(instance.clone())
    });
    images
}

/// Describes a series.
fn line(n: usize, uid: &str, images: &[Image]) -> String {
    let header = &images[0].header;
    let frames: usize = images.iter().map(|image| image.header.frames.len()).sum();
    let clean = |text: &str| -> String {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        excerpt(&text)
    };
    format!(
        "{n}: {:?}, {}, {frames} images of {} x {}, {}",
        clean(&header.description),
        clean(&header.modality),
        header.form.rows,
        header.form.columns,
        uid.chars()
            .filter(|c| !c.is_control())
            .take(64)
            .collect::<String>()
    )
}
