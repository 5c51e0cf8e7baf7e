//! `voxpatch sample`: training patches, drawn and read as the loader does it.

mod budget;
mod draw;
mod settings;
mod sink;
mod summary;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use voxpatch::meter::Meter;
use voxpatch::sampler::{CenterBox, FixedLocations, INDEX, LOCATIONS, is_index_file};
use voxpatch::training::{Dataset, EpochPlan, Loader, LoaderOptions, RankShard, Subject};
use voxpatch::volume::{FileKind, Overwrite, TOLERANCE, check_distinct, check_output};
use voxpatch::{Error, Layout, Normalize, Region, Shape};

pub(crate) use self::budget::{Budget, MOST_AHEAD, Needs, chunk_bytes};
use self::draw::{Input, Samplers};
use self::settings::BorderName;
pub(crate) use self::settings::SampleArgs;
use self::sink::{Form, Naming, Sink};
use self::summary::SampleSummary;
use crate::output::{Output, PICTURE, STATISTICS};
use crate::preview::Projection;
use crate::progress::{Unit, continues};
use crate::report::{self, Report, patch_bytes};
use crate::stop;

/// Draws the patches and writes them as they come.
pub(crate) fn run(settings: &SampleArgs) -> anyhow::Result<()> {
    settings.check()?;
    check_outputs(settings)?;
    let inputs = (0..settings.sources.len()).map(|n| Input::open(settings, n));
    let mut inputs: Vec<Input> = inputs.collect::<anyhow::Result<_>>()?;
    make_alike(settings, &mut inputs)?;
    check_spacings(settings, &inputs)?;
    let fixed = settings.at.as_ref().map(FixedLocations::read);
    let fixed = fixed.transpose()?;
    let listed = fixed.as_ref().map(|fixed| fixed.regions()[0].shape);
    let patch = listed.or(settings.patch_size).unwrap_or_default();
    if fixed.is_none() {
        for input in &inputs {
            CenterBox::new(input.subject.shape(), patch, settings.border.into())?;
        }
    }
    let drawn = patch;
    let patch = settings.crop.unwrap_or(patch);
    let budget = budget(settings, &inputs, patch)?;
    if settings.dry_run {
        let each = match &fixed {
            Some(fixed) => fixed.regions().len() as u64,
            None => settings.samples_per_subject.unwrap_or(0),
        };
        let count = each.saturating_mul(inputs.len() as u64);
        let count = count.div_ceil(settings.world_size.max(1));
        return dry_run(settings, &inputs, &budget, (patch, count));
    }

    stop::stop_gracefully();
    let meter = Meter::start();
    let samplers = Samplers::new(settings, &inputs, drawn, fixed.as_ref(), &budget)?;
    stop::check()?;
    let mut done = SampleSummary {
        index_seconds: samplers.index_seconds,
        absent: samplers.absent.clone(),
        nowhere: samplers.nowhere.clone(),
        left_out: samplers.left_out,
        ..SampleSummary::default()
    };
    let began = Instant::now();
    let mut loader = loader(settings, &inputs, samplers, &budget)?;
    let mut files = Files::create(settings, &inputs, patch, loader.remaining())?;
    let sampled =
        settings
            .common
            .task("sampling", Unit::Patches)
            .run(|progress| -> anyhow::Result<()> {
                let count = loader.remaining();
                for sample in &mut loader {
                    let sample = sample.map_err(|error| plain(error, inputs.len()))?;
                    if done.patches == 0 {
                        done.first_patch_seconds = began.elapsed().as_secs_f64();
                    }
                    files.put(&sample)?;
                    done.patches += 1;
                    done.bytes += sample.patches()[0].bytes().len() as u64;
                    if !continues(progress(done.patches, count)) {
                        return Err(Error::Interrupted.into());
                    }
                }
                Ok(())
            });
    done.loaded = loader.stats();
    // Its threads end before unfinished outputs are removed, which takes a file descriptor.
    drop(loader);
    sampled?;
    done.seconds = began.elapsed().as_secs_f64();
    let picture = match &files.picture {
        Some(picture) => Some(
            settings
                .common
                .task("drawing", Unit::Chunks)
                .run(|progress| picture.draw(progress))?,
        ),
        None => None,
    };
    done.peak_anonymous = meter.stop().anonymous;
    done.patch = Some(Layout {
        shape: patch,
        ..patches_layout(&inputs[0])
    });
    let report = done.report(settings);
    if let (Some(picture), Some(path)) = (picture, &settings.plot) {
        picture.save(path, settings.overwrite)?;
    }
    files.finish(settings, &report)?;
    report.print(settings.common.printing)
}

/// Reports what sampling takes, with up to `count` patches.
fn dry_run(
    settings: &SampleArgs,
    inputs: &[Input],
    budget: &Budget,
    (patch, count): (Shape, u64),
) -> anyhow::Result<()> {
    let mut report = Report::default();
    report.plain("threads", budget.threads as u64);
    report.add("buffer_bytes", budget.buffer, report::bytes(budget.buffer));
    report.add("peak_bytes", budget.peak, report::bytes(budget.peak));
    if let Some(path) = &settings.out {
        let layout = patches_layout(&inputs[0]);
        let space = Form::of(path)?.space(path, &layout, (patch, count))?;
        let space = [space];
        report::warn_of_space(&space);
        let one = patch_bytes(layout.channels, patch, layout.dtype)?;
        report::add_disk(&mut report, &[one.saturating_mul(count)], &space);
    }
    report::add_process(&mut report, budget.peak);
    report.print(settings.common.printing)
}

/// The layout of an input, with the type of its patches.
fn patches_layout(input: &Input) -> Layout {
    Layout {
        dtype: input.subject.images()[0].dtype(),
        ..input.volume().layout().clone()
    }
}

/// Checks that no output is an input or another output, and that its name is free.
fn check_outputs(settings: &SampleArgs) -> anyhow::Result<()> {
    let inputs = [
        &settings.sources,
        &settings.labels,
        &settings.weights,
        &settings.index,
    ];
    let mut inputs: Vec<_> = inputs.into_iter().flatten().map(AsRef::as_ref).collect();
    inputs.extend(settings.at.as_deref());
    let outputs: Vec<_> = settings.outputs().collect();
    for (n, &(name, path)) in outputs.iter().enumerate() {
        check_output(path, &inputs)?;
        for &(other, before) in &outputs[..n] {
            check_distinct(&[before, path])
                .with_context(|| format!("{other} and {name} cannot both be written"))?;
        }
    }
    let overwrite = settings.overwrite;
    if let Some(path) = &settings.out {
        let form = Form::of(path)?;
        form.check(path, overwrite)?;
        if settings.gzip && form != Form::Folder {
            anyhow::bail!(
                "--gzip is for a folder of patches, which {} is not",
                path.display()
            );
        }
    }
    for (path, kind) in [
        (&settings.locations, LOCATIONS),
        (&settings.stats, STATISTICS),
        (&settings.plot, PICTURE),
    ] {
        if let Some(path) = path {
            kind.overwrite(overwrite).check(path)?;
        }
    }
    let volumes = inputs.len() - settings.index.len() - usize::from(settings.at.is_some());
    for (n, path) in settings.index.iter().enumerate() {
        check_output(path, &inputs[..volumes])?;
        if !is_index_file(path) {
            // Somebody's file, which is none of ours to replace.
            Overwrite::File(INDEX).check(path)?;
        }
        if settings.index[..n].contains(path) {
            anyhow::bail!("two indexes cannot both be written to {}", path.display());
        }
    }
    Ok(())
}

/// Makes patches of all inputs fit into one array, if they go to one: they get one type that has all their
/// values. Other differences are errors.
fn make_alike(settings: &SampleArgs, inputs: &mut [Input]) -> anyhow::Result<()> {
    let form = settings.out.as_deref().map(Form::of).transpose()?;
    let Some(form @ (Form::Npy | Form::Zarr)) = form else {
        return Ok(());
    };
    let first = inputs[0].volume().layout();
    let mut dtype = inputs[0].subject.images()[0].dtype();
    for input in &*inputs {
        let layout = input.volume().layout();
        let differ = |what: &str, one: String, other: String| {
            anyhow::anyhow!(
                "patches of {} and of {} do not fit into one array: {what} {one} and {other}; write them to a folder",
                first.path.display(),
                layout.path.display()
            )
        };
        if layout.channels != first.channels {
            let counts = [first.channels, layout.channels].map(|n| n.to_string());
            let [one, other] = counts;
            return Err(differ("their channels are", one, other));
        }
        // A .npy has no spacing that could be wrong.
        let spacings = [first.geometry.spacing, layout.geometry.spacing];
        let near =
            |a: usize| (spacings[0][a] - spacings[1][a]).abs() <= TOLERANCE * spacings[0][a].abs();
        if form == Form::Zarr && !(0..3).all(near) {
            let [one, other] = spacings.map(|spacing| format!("{spacing:?}"));
            return Err(differ("their spacings (z, y, x, mm) are", one, other));
        }
        let own = input.subject.images()[0].dtype();
        dtype = dtype.common(own).ok_or_else(|| {
            let [one, other] = [dtype, own].map(|dtype| dtype.to_string());
            differ("no type holds", one, other)
        })?;
    }
    inputs.iter_mut().try_for_each(|input| input.cast(dtype))?;
    Ok(())
}

/// Checks that patches in a Zarr array, which has one spacing, keep theirs if their axes change places.
fn check_spacings(settings: &SampleArgs, inputs: &[Input]) -> anyhow::Result<()> {
    let form = settings.out.as_deref().map(Form::of).transpose()?;
    let changes = settings.permute > 0.0 || settings.rotate > 0.0;
    if form != Some(Form::Zarr) {
        return Ok(());
    }
    anyhow::ensure!(
        settings.augment().affine.is_none(),
        "patches with random rotations or scales do not fit into one Zarr array, which has one spacing: write them to a folder or a .npy"
    );
    if !changes {
        return Ok(());
    }
    let layout = inputs[0].volume().layout();
    let [z, y, x] = layout.geometry.spacing;
    let near = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * a.abs();
    anyhow::ensure!(
        near(z, y) && near(y, x),
        "patches of {} with other axes do not fit into one Zarr array: its spacing (z, y, x, mm) is {:?}; write them to a folder",
        layout.path.display(),
        layout.geometry.spacing
    );
    Ok(())
}

fn budget(settings: &SampleArgs, inputs: &[Input], patch: Shape) -> voxpatch::Result<Budget> {
    let mut needs = Needs::default();
    for input in inputs {
        let bytes = input.subject.sample_bytes(patch);
        needs.patch = needs.patch.max(bytes);
        let image = &input.subject.images()[0];
        needs.chunk = needs.chunk.max(chunk_bytes(image.source_layout(), false));
        let maps = input.maps().map(|map| map.layout().read_memory);
        for read in maps.chain([image.loading_memory(patch)]) {
            needs.read.shared = needs.read.shared.saturating_add(read.shared);
            needs.read.thread = needs.read.thread.max(read.thread);
            needs.read.answers = needs.read.answers.max(read.answers);
        }
        for map in input.maps() {
            needs.maps = true;
            needs.chunk = needs.chunk.max(chunk_bytes(map.layout(), true));
        }
    }
    // A patch that hangs over the edge is gathered first, and then filled up.
    let copies = 1
        + u64::from(settings.border == BorderName::Pad)
        + u64::from(settings.normalize.normalize != Normalize::None)
        // The box of a turned patch has several times its voxels.
        + 4 * u64::from(settings.augment().interpolates());
    needs.held = needs.patch.saturating_mul(copies);
    // Volumes are measured in the memory of maps.
    needs.maps |= settings.normalize.normalize.measures();
    if let Some(path) = &settings.out
        && Form::of(path)? == Form::Zarr
    {
        needs.write = needs.patch;
    }
    let threads = settings.common.threads();
    let min_threads = settings.common.min_threads();
    Budget::new(settings.memory.memory, threads, min_threads, &needs)
}

fn loader(
    settings: &SampleArgs,
    inputs: &[Input],
    samplers: Samplers,
    budget: &Budget,
) -> voxpatch::Result<Loader> {
    let several = inputs.len() > 1;
    let plan =
        EpochPlan::with_counts(&samplers.counts, settings.seed)?.with_shuffle(several, several);
    let shard = RankShard::of(settings.rank, settings.world_size, 1);
    let options = LoaderOptions::default()
        .with_threads(budget.threads)
        .with_max_length(MOST_AHEAD)
        .with_memory(budget.buffer)
        .with_shard(shard.with_uneven(settings.uneven.into()))
        .with_augment(settings.augment());
    let subjects: Vec<Subject> = inputs.iter().map(|input| input.subject.clone()).collect();
    Dataset::new(subjects, samplers.into_factory())
        .with_plan(plan)
        .epoch(settings.epoch)
        .with_options(options)
        .samples()
}

/// With one input, an error need not say which.
fn plain(error: Error, inputs: usize) -> Error {
    if inputs > 1 {
        return error;
    }
    match error {
        Error::Subject { source, .. } => Error::Shared(source),
        Error::Shared(inner) => match &*inner {
            Error::Subject { source, .. } => Error::Shared(Arc::clone(source)),
            _ => Error::Shared(inner),
        },
        other => other,
    }
}

/// All outputs under construction.
struct Files {
    out: Sink,
    locations: Option<Output>,
    stats: Option<Output>,
    picture: Option<Projection>,
}

impl Files {
    fn create(
        settings: &SampleArgs,
        inputs: &[Input],
        patch: Shape,
        count: u64,
    ) -> anyhow::Result<Self> {
        let overwrite = settings.overwrite;
        let volume = inputs[0].volume();
        let layout = patches_layout(&inputs[0]);
        if let Some(path) = &settings.out {
            let space = Form::of(path)?.space(path, &layout, (patch, count))?;
            space.check()?;
            report::warn_of_space(&[space]);
        }
        if let Some(path) = &settings.plot {
            // It is drawn at the end; that it cannot be written is better known now.
            drop(Output::create(path, PICTURE.overwrite(overwrite))?);
        }
        let file = |path: &Option<PathBuf>, kind: FileKind| {
            let path = path.as_ref();
            path.map(|path| Output::create(path, kind.overwrite(overwrite)))
                .transpose()
        };
        Ok(Self {
            out: match &settings.out {
                Some(path) => {
                    let naming = Naming {
                        several: inputs.len() > 1,
                        extension: if settings.gzip { "nii.gz" } else { "nii" },
                    };
                    Sink::create(path, overwrite, &layout, (patch, count), naming)?
                }
                None => Sink::Nothing,
            },
            locations: file(&settings.locations, LOCATIONS)?,
            stats: file(&settings.stats, STATISTICS)?,
            picture: settings
                .plot
                .as_ref()
                .map(|_| Projection::new(Arc::clone(volume))),
        })
    }

    fn put(&mut self, sample: &voxpatch::training::Sample) -> anyhow::Result<()> {
        self.out.put(sample)?;
        if let Some(file) = &mut self.locations {
            file.append(csv_line(sample.region).as_bytes())?;
        }
        if let Some(picture) = &mut self.picture {
            picture.mark(sample.region);
        }
        Ok(())
    }

    /// Gives all but the picture their names.
    fn finish(self, settings: &SampleArgs, report: &Report) -> anyhow::Result<()> {
        self.out.finish()?;
        if let Some(file) = self.locations {
            file.finish()?;
        }
        if let (Some(mut file), Some(_)) = (self.stats, &settings.stats) {
            file.append(report.object().as_bytes())?;
            file.finish()?;
        }
        Ok(())
    }
}

fn csv_line(region: Region) -> String {
    let numbers: Vec<String> = region
        .start
        .into_iter()
        .chain(region.end())
        .map(|n| n.to_string())
        .collect();
    numbers.join(",") + "\n"
}
