//! A seat that nobody sits in: what stands where a model would that is never asked for anything.

use super::{Backend, Capabilities, Span};
use crate::error::{Error, Result};

/// See the [module](self). Its capabilities are those of the model that it stands beside.
pub struct Absent(pub Capabilities);

impl Backend for Absent {
    fn capabilities(&self) -> &Capabilities {
        &self.0
    }

    fn forward(&mut self, _: &[Span<'_>]) -> Result<()> {
        Err(Error::engine("proxytune", "a proxy that is not there was asked for logits"))
    }

    fn logits(&self, _: usize) -> &[f32] {
        &[]
    }

    fn logits_mut(&mut self, _: usize) -> &mut [f32] {
        &mut []
    }

    fn truncate(&mut self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn fork(&mut self, _: usize, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn clear(&mut self, _: usize) {}
}
