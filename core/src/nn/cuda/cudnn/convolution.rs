//! Convolutions as graphs of cuDNN's: of bf16, as the tensors lie; how they are laid out for the tensor cores is its own matter.

use candle_core::Result;

use super::api::Handle;
use super::graph::{Direction, Graph, Layout, Node, Numbers, Window};
use super::plan::{ExecutionPlan, SameBits};
use crate::nn::Padding;

/// The extents of a convolution of pictures: what a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Convolution {
    pub(crate) batch: usize,
    /// Output and input channels, rows and columns of the window.
    pub(crate) weight: (usize, usize, usize, usize),
    /// Rows and columns of the picture, and of the one that follows.
    pub(crate) size: (usize, usize),
    pub(crate) out: (usize, usize),
    pub(crate) stride: usize,
    pub(crate) padding: Padding,
}

impl Convolution {
    /// Of the picture.
    fn picture(&self) -> [usize; 4] {
        let (_, inputs, ..) = self.weight;
        [self.batch, inputs, self.size.0, self.size.1]
    }

    /// Of the one that follows.
    fn following(&self) -> [usize; 4] {
        let (outputs, ..) = self.weight;
        [self.batch, outputs, self.out.0, self.out.1]
    }

    /// The shapes of what is given beside the weight, and of what is made.
    pub(super) fn shapes(&self, direction: Direction) -> [[usize; 4]; 2] {
        let (picture, following) = (self.picture(), self.following());
        match direction {
            Direction::Forward => [picture, following],
            Direction::TowardsPicture => [following, picture],
        }
    }

    fn window(&self) -> Window {
        let Padding {
            top,
            bottom,
            left,
            right,
        } = self.padding;
        Window {
            strides: [self.stride as i64; 2],
            before: [top as i64, left as i64],
            behind: [bottom as i64, right as i64],
        }
    }
}

/// One number after the other, the last dimension first.
fn in_order(dims: [usize; 4]) -> Layout {
    let dims = dims.map(|d| d as i64);
    let [_, c, h, w] = dims;
    Layout {
        dims,
        strides: [c * h * w, h * w, w, 1],
    }
}

/// A plan of a convolution, with the tensors that it is run on.
pub(super) struct Plan {
    pub(super) plan: ExecutionPlan,
    /// What is given beside the weight.
    pub(super) given: Node,
    pub(super) weight: Node,
    pub(super) made: Node,
}

impl Plan {
    pub(super) fn new(
        handle: &Handle,
        convolution: &Convolution,
        direction: Direction,
    ) -> Result<Self> {
        let mut graph = Graph::new(handle.api());
        let (outputs, inputs, rows, columns) = convolution.weight;
        let window = in_order([outputs, inputs, rows, columns]);
        let x = graph.given(Numbers::Bf16, in_order(convolution.picture()))?;
        let weight = graph.given(Numbers::Bf16, window)?;
        let y = graph.given(Numbers::Bf16, in_order(convolution.following()))?;
        graph.convolve(direction, convolution.window(), [x, weight, y])?;
        let (given, made) = match direction {
            Direction::Forward => (x, y),
            Direction::TowardsPicture => (y, x),
        };
        Ok(Self {
            plan: ExecutionPlan::new(handle, graph, SameBits::ByEngine)?,
            given,
            weight,
            made,
        })
    }
}
