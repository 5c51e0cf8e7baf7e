//! `voxpatch sample`: random patches in one .npy.

use std::sync::Arc;
use std::time::Instant;

use voxpatch::volume::{Cached, OpenOptions, Reads, check_output};
use voxpatch::{DType, Error, Patch, Queue, Region, Shape, Uniform, Volume};

use crate::args;
use crate::output::Output;
use crate::report::{self, Report};
use crate::stop;

/// Draws the patches and writes them as they come.
pub(crate) fn run(settings: &args::Sample) -> anyhow::Result<()> {
    let began = Instant::now();
    let options = OpenOptions {
        level: settings.common.level,
        ..OpenOptions::default()
    };
    let volume = options.open(&settings.source)?;
    check_output(&settings.out, &[&settings.source])?;
    if let Some(path) = &settings.locations {
        check_output(path, &[&settings.source])?;
        anyhow::ensure!(
            path != &settings.out,
            "patches and locations cannot both be written to {}",
            path.display()
        );
    }
    let (shape, channels, dtype) = {
        let layout = volume.layout();
        (layout.shape, layout.channels, layout.dtype)
    };
    let draws = Uniform::new(shape, settings.patch, settings.seed)?;
    let patch_bytes = patch_bytes(channels, settings.patch, dtype)?;
    let plan = Ahead::new(
        patch_bytes,
        settings.memory.memory,
        settings.common.threads(),
    )?;

    stop::heed();
    let mut out = Output::create(&settings.out, settings.common.force)?;
    let mut locations = match &settings.locations {
        Some(path) => Some(Output::create(path, settings.common.force)?),
        None => None,
    };
    let [z, y, x] = settings.patch;
    out.append(&npy_header(dtype, [settings.count, channels, z, y, x]))?;
    let mut sampling = Sampling::new(volume, draws, settings.count, &plan);
    report::with_progress("sampling", |progress| -> anyhow::Result<()> {
        let mut done = 0;
        for patch in &mut sampling {
            let patch = patch?;
            out.append(patch.bytes())?;
            if let Some(file) = &mut locations {
                file.append(csv_line(patch.region()).as_bytes())?;
            }
            done += 1;
            if !report::goes_on(progress(done, settings.count)) {
                return Err(Error::Stopped.into());
            }
        }
        Ok(())
    })?;
    let reads = sampling.reads();
    drop(sampling);
    if let Some(file) = locations {
        file.finish()?;
    }
    out.finish()?;

    let seconds = began.elapsed().as_secs_f64();
    let mut told = Report::default();
    told.plain("patches", settings.count);
    tell_rates(&mut told, settings.count, patch_bytes, seconds);
    told.plain("chunks_read", reads.chunks);
    told.plain("cache_hits", reads.hits);
    told.plain("out", settings.out.display().to_string());
    told.print(settings.common.json)
}

/// Patches that arrive in drawn order, read ahead by threads through a cache.
#[derive(Debug)]
pub(crate) struct Sampling {
    volume: Arc<Cached>,
    queue: Queue<voxpatch::Result<Patch>>,
}

impl Sampling {
    /// The first `count` of `draws` from `volume`.
    pub(crate) fn new(volume: Arc<dyn Volume>, draws: Uniform, count: u64, plan: &Ahead) -> Self {
        let volume = Arc::new(Cached::new(volume, plan.cache));
        let source = Arc::clone(&volume);
        let regions = (0..count).map(move |index| draws.region(index));
        let queue = Queue::new(regions, plan.threads, plan.patches, move |region| {
            stop::check()?;
            source.read(region)
        });
        Self { volume, queue }
    }

    /// What was read so far.
    pub(crate) fn reads(&self) -> Reads {
        self.volume.reads()
    }
}

impl Iterator for Sampling {
    type Item = voxpatch::Result<Patch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.queue.next()
    }
}

/// How memory is shared between patches under way and decoded chunks.
#[derive(Debug)]
pub(crate) struct Ahead {
    threads: usize,
    /// Patches that nobody has taken yet, at most.
    patches: usize,
    cache: u64,
}

impl Ahead {
    /// Two patches for each thread if half of the memory allows that, an eighth for what the
    /// allocator cannot use, the rest for chunks.
    pub(crate) fn new(patch_bytes: u64, memory: u64, threads: usize) -> voxpatch::Result<Self> {
        // One more is in the consumer's hands.
        let fit = memory / 2 / patch_bytes.max(1);
        let Some(ahead) = fit.checked_sub(1).filter(|&n| n > 0) else {
            return Err(Error::Setting {
                name: "a memory of",
                value: report::bytes(memory),
                problem: format!(
                    "a patch takes {}, and two of them may take half: give at least {} bytes, or make the patch smaller",
                    report::bytes(patch_bytes),
                    patch_bytes.saturating_mul(4),
                ),
            });
        };
        let ahead = usize::try_from(ahead)
            .unwrap_or(usize::MAX)
            .min(2 * threads);
        let under_way = patch_bytes.saturating_mul(ahead as u64 + 1);
        Ok(Self {
            threads: threads.min(ahead),
            patches: ahead,
            cache: memory.saturating_sub(under_way).saturating_sub(memory / 8),
        })
    }
}

/// Bytes of a patch.
pub(crate) fn patch_bytes(channels: u64, patch: Shape, dtype: DType) -> voxpatch::Result<u64> {
    voxpatch::Layout::new(patch, channels, dtype).decoded_bytes()
}

/// Adds seconds and rates.
pub(crate) fn tell_rates(told: &mut Report, patches: u64, patch_bytes: u64, seconds: f64) {
    let rate = report::float(patches) / seconds.max(1e-9);
    let megabytes = rate * report::float(patch_bytes) / 1e6;
    told.add(
        "seconds",
        report::rounded(seconds, 3),
        format!("{seconds:.2}"),
    );
    told.add(
        "patches_per_second",
        report::rounded(rate, 1),
        format!("{rate:.1}"),
    );
    told.add(
        "megabytes_per_second",
        report::rounded(megabytes, 1),
        format!("{megabytes:.1}"),
    );
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

/// The head of a .npy (version 1.0) of this type and shape.
fn npy_header(dtype: DType, shape: [u64; 5]) -> Vec<u8> {
    let kind = match dtype {
        DType::Bool => 'b',
        dtype if dtype.is_float() => 'f',
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => 'u',
        _ => 'i',
    };
    let order = match dtype.size() {
        1 => '|',
        _ if cfg!(target_endian = "big") => '>',
        _ => '<',
    };
    let shape = shape.map(|n| n.to_string()).join(", ");
    let mut text = format!(
        "{{'descr': '{order}{kind}{}', 'fortran_order': False, 'shape': ({shape}), }}",
        dtype.size()
    );
    // Voxels start at a multiple of 64; the line feed ends the header.
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(length - text.len() - 1));
    text.push('\n');
    let length = u16::try_from(length).expect("five numbers are a few hundred characters");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(length.to_le_bytes());
    header.extend(text.bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_npy_header_is_aligned_and_spells_the_type() {
        for (dtype, name) in [
            (DType::I16, "<i2"),
            (DType::Bool, "|b1"),
            (DType::F16, "<f2"),
        ] {
            let header = npy_header(dtype, [u64::MAX; 5]);
            assert_eq!(header.len() % 64, 0);
            let text = String::from_utf8_lossy(&header[10..]).into_owned();
            assert!(text.starts_with(&format!("{{'descr': '{name}',")) && text.ends_with('\n'));
        }
    }

    #[test]
    fn patches_under_way_stay_within_half_of_the_memory() {
        let plan = Ahead::new(10, 100, 8).expect("there is room");
        assert_eq!((plan.patches, plan.threads, plan.cache), (4, 4, 38));
        let plan = Ahead::new(10, 1000, 2).expect("there is room");
        assert_eq!((plan.patches, plan.threads, plan.cache), (4, 2, 825));
        assert!(Ahead::new(10, 39, 2).is_err());
    }
}
