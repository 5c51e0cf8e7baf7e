//! Subsets of volumes: time points, channels and a box.

use std::ops::Range;
use std::sync::Arc;

use super::{ChannelRange, Cropped, Volume, VolumeExt};
use crate::error::{Error, Result};
use crate::region::{AXES, Region};

/// A range of voxels, channels or time points; without an end, it extends to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexRange {
    /// The first item.
    pub start: u64,
    /// One past the last item.
    pub end: Option<u64>,
}

impl IndexRange {
    /// Creates a range of one item.
    #[must_use]
    pub const fn one(place: u64) -> Self {
        Self {
            start: place,
            end: Some(place.saturating_add(1)),
        }
    }

    /// Returns the range within a length of `count`, unchecked.
    fn of(self, count: u64) -> Range<u64> {
        self.start..self.end.unwrap_or(count)
    }
}

impl From<Range<u64>> for IndexRange {
    fn from(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            end: Some(range.end),
        }
    }
}

/// A subset of a volume: time points, channels and a box. The default is the whole volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subset {
    /// Time points.
    pub time: Option<IndexRange>,
    /// Channels; those of the chosen time points, if there are any.
    pub channels: Option<IndexRange>,
    /// Voxels along z, y, x.
    pub region: Option<[IndexRange; 3]>,
}

impl Subset {
    /// Returns the subset of `volume`. Nothing is copied; voxels keep their world positions.
    ///
    /// # Errors
    ///
    /// [`Error::NoTime`] or [`Error::NoSuchTime`] if the volume does not have these time points,
    /// [`Error::NoSuchChannel`] if it does not have these channels, and [`Error::NoSuchBox`] if the
    /// box is empty or not inside.
    pub fn of(&self, volume: Arc<dyn Volume>) -> Result<Arc<dyn Volume>> {
        self.cropped(self.channels_of(volume)?)
    }

    /// Returns the chosen time points and channels of `volume`.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of).
    pub fn channels_of(&self, volume: Arc<dyn Volume>) -> Result<Arc<dyn Volume>> {
        let mut chosen = 0..volume.layout().channels;
        if let Some(times) = self.time {
            let points = volume.time_points().unwrap_or(0);
            let times = times.of(points);
            chosen = volume.channels_at(times.clone())?;
            if times.is_empty() {
                return Err(Error::NoSuchTime {
                    path: volume.layout().path.clone(),
                    start: times.start,
                    end: times.end,
                    points,
                });
            }
        }
        if let Some(channels) = self.channels {
            let count = chosen.end - chosen.start;
            let channels = channels.of(count);
            if channels.is_empty() || channels.end > count {
                return Err(Error::NoSuchChannel {
                    start: channels.start,
                    end: channels.end,
                    channels: count,
                });
            }
            chosen = chosen.start + channels.start..chosen.start + channels.end;
        }
        if chosen == (0..volume.layout().channels) {
            return Ok(volume);
        }
        Ok(Arc::new(ChannelRange::new(volume, chosen)?))
    }

    /// Returns the chosen box of `volume`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchBox`] if the box is empty or not inside the volume.
    pub fn cropped(&self, volume: Arc<dyn Volume>) -> Result<Arc<dyn Volume>> {
        let Some(spans) = self.region else {
            return Ok(volume);
        };
        let layout = volume.layout();
        let mut region = Region::whole(layout.shape);
        for (axis, span) in spans.into_iter().enumerate() {
            let range = span.of(layout.shape[axis]);
            if range.is_empty() || range.end > layout.shape[axis] {
                return Err(Error::NoSuchBox {
                    path: layout.path.clone(),
                    axis: AXES[axis],
                    start: range.start,
                    end: range.end,
                    length: layout.shape[axis],
                });
            }
            region.start[axis] = range.start.cast_signed();
            region.shape[axis] = range.end - range.start;
        }
        if region == Region::whole(layout.shape) {
            return Ok(volume);
        }
        Ok(Arc::new(Cropped::new(volume, region)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::geometry::Geometry;
    use crate::volume::{Layout, MemoryVolume, suite};

    /// A volume of three time points of two channels of 4 x 5 x 6 voxels, numbered.
    #[derive(Debug)]
    struct Timed(MemoryVolume);

    impl Volume for Timed {
        fn layout(&self) -> &Layout {
            Volume::layout(&self.0)
        }
        fn read_channels(
            &self,
            channels: Range<u64>,
            region: Region,
            out: &mut [u8],
        ) -> Result<()> {
            self.0.read_channels(channels, region, out)
        }
        fn time_points(&self) -> Option<u64> {
            Some(3)
        }
    }

    fn timed(chunk: Option<[u64; 4]>) -> Arc<dyn Volume> {
        let voxels: Vec<u16> = (0..6 * 120).collect();
        let volume = MemoryVolume::from_vec([4, 5, 6], 6, voxels).unwrap();
        Arc::new(Timed(match chunk {
            Some(chunk) => volume.with_chunks(chunk),
            None => volume,
        }))
    }

    fn span(start: u64, end: u64) -> IndexRange {
        (start..end).into()
    }

    #[test]
    fn times_channels_and_boxes_are_what_indices_give() {
        for chunk in [None, Some([1, 2, 2, 2]), Some([4, 3, 4, 5])] {
            let volume = timed(chunk);
            let whole = volume.read(Region::whole([4, 5, 6])).unwrap();
            for (times, channels, first, count) in [
                (None, None, 0, 6),
                (Some(IndexRange::one(1)), None, 2, 2),
                (Some(IndexRange::one(2)), Some(IndexRange::one(1)), 5, 1),
                (
                    Some(IndexRange {
                        start: 1,
                        end: None,
                    }),
                    None,
                    2,
                    4,
                ),
                (None, Some(span(1, 4)), 1, 3),
                (
                    None,
                    Some(IndexRange {
                        start: 5,
                        end: None,
                    }),
                    5,
                    1,
                ),
            ] {
                for region in [
                    None,
                    Some([
                        span(1, 3),
                        IndexRange {
                            start: 2,
                            end: None,
                        },
                        span(0, 6),
                    ]),
                    Some([span(3, 4), span(0, 1), span(5, 6)]),
                ] {
                    let choice = Subset {
                        time: times,
                        channels,
                        region,
                    };
                    let found = choice.of(Arc::clone(&volume)).unwrap();
                    let spans = region.unwrap_or(
                        [IndexRange {
                            start: 0,
                            end: None,
                        }; 3],
                    );
                    let ends = [0, 1, 2].map(|a| spans[a].of([4, 5, 6][a]));
                    let mut voxels = Vec::new();
                    for c in first..first + count {
                        for z in ends[0].clone() {
                            for y in ends[1].clone() {
                                for x in ends[2].clone() {
                                    let at = ((c * 4 + z) * 5 + y) * 6 + x;
                                    let at = usize::try_from(at).unwrap();
                                    voxels.push(whole.as_slice::<u16>().unwrap()[at]);
                                }
                            }
                        }
                    }
                    let shape = [0, 1, 2].map(|a: usize| ends[a].end - ends[a].start);
                    let expected = MemoryVolume::from_vec(shape, count, voxels).unwrap();
                    suite::check(&*found, &expected.to_patch());
                    let start =
                        [0, 1, 2].map(|a: usize| f64::from(u32::try_from(ends[a].start).unwrap()));
                    let place = Geometry::default().moved_to(start);
                    assert_eq!(found.layout().geometry, place);
                }
            }
        }
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let volume = timed(None);
        let of = |choice: Subset| choice.of(Arc::clone(&volume)).map(|_| ());
        let times = |times| {
            of(Subset {
                time: Some(times),
                ..Subset::default()
            })
        };
        let channels = |channels| {
            of(Subset {
                channels: Some(channels),
                ..Subset::default()
            })
        };
        for wrong in [
            IndexRange::one(3),
            span(2, 4),
            span(1, 1),
            IndexRange {
                start: 3,
                end: None,
            },
        ] {
            assert!(
                matches!(times(wrong), Err(Error::NoSuchTime { .. })),
                "{wrong:?}"
            );
        }
        for wrong in [
            IndexRange::one(6),
            span(5, 7),
            span(2, 1),
            IndexRange {
                start: 9,
                end: None,
            },
        ] {
            assert!(
                matches!(channels(wrong), Err(Error::NoSuchChannel { .. })),
                "{wrong:?}"
            );
        }
        // Only two channels at one time point.
        let both = Subset {
            time: Some(IndexRange::one(0)),
            channels: Some(IndexRange::one(2)),
            region: None,
        };
        assert!(matches!(
            of(both),
            Err(Error::NoSuchChannel { channels: 2, .. })
        ));
        for wrong in [
            span(0, 5),
            span(2, 2),
            IndexRange {
                start: 4,
                end: None,
            },
            IndexRange::one(u64::MAX),
        ] {
            let region = Some([span(0, 1), wrong, span(0, 1)]);
            let region = of(Subset {
                region,
                ..Subset::default()
            });
            // The y axis has 5 voxels.
            assert_eq!(
                region.is_ok(),
                wrong == span(0, 5) || wrong.start == 4,
                "{wrong:?}"
            );
        }
        let plain: Arc<dyn Volume> =
            Arc::new(MemoryVolume::zeros(Layout::new([2; 3], 2, DType::U8)).unwrap());
        let times = Subset {
            time: Some(IndexRange::one(0)),
            ..Subset::default()
        };
        assert!(matches!(times.of(plain), Err(Error::NoTime { .. })));
    }
}
