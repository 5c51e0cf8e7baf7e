//! stub
use super::*;
#[derive(Debug)]
pub(super) struct FlatVolume(Layout);
impl FlatVolume {
    pub(super) fn open(_p: &std::path::Path, _r: Option<&RawSpec>) -> Result<Self> {
        todo!()
    }
}
impl Volume for FlatVolume {
    fn layout(&self) -> &Layout {
        &self.0
    }
    fn read_channels(&self, _c: Range<u64>, _r: Region, _o: &mut [u8]) -> Result<()> {
        todo!()
    }
}
#[derive(Debug)]
pub(super) struct FlatWriter(Layout);
impl FlatWriter {
    pub(super) fn create(_l: Layout, _o: &CreateOptions) -> Result<Self> {
        todo!()
    }
}
impl VolumeMut for FlatWriter {
    fn layout(&self) -> &Layout {
        &self.0
    }
    fn write_channels(&self, _c: Range<u64>, _r: Region, _v: &[u8]) -> Result<()> {
        todo!()
    }
    fn finish(self: Box<Self>) -> Result<()> {
        todo!()
    }
}
