//! Graphs of operations on tensors.

use std::sync::Arc;

use candle_core::{Result, bail};

use super::api::{Api, Descriptor, Holds, Kind};
use super::attribute;

/// Bytes that every address is a multiple of.
pub(super) const ALIGNMENT: usize = 16;

/// Types of numbers, `cudnnDataType_t`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Numbers {
    F32 = 0,
    I32 = 4,
    Bf16 = 9,
    Flags = 11,
}

/// What is done to numbers one by one, `cudnnPointwiseMode_t`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Pointwise {
    Add = 0,
    Multiply = 1,
    Divide = 6,
    Subtract = 9,
    Exponential = 13,
    Logarithm = 15,
    Less = 304,
    And = 400,
}

/// `cudnnPointwiseMode_t`: each number's place along an axis, and one of two numbers by a flag.
const INDEX: i32 = 501;
const SELECT: i32 = 601;

/// How a row becomes a number, `cudnnReduceTensorOp_t`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Reduction {
    Sum = 0,
    Largest = 3,
}

/// Which way a convolution goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// Of a picture, the one that follows.
    Forward,
    /// Of the gradient of the one that follows, that of the picture.
    TowardsPicture,
}

/// How a convolution's window moves, by rows and by columns.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) strides: [i64; 2],
    /// Zeros above and left of a picture.
    pub(super) before: [i64; 2],
    /// Zeros below and right of it.
    pub(super) behind: [i64; 2],
}

/// `cudnnConvolutionMode_t`: the window is not turned, as everywhere in deep learning.
const CROSS_CORRELATION: i32 = 1;

/// Dimensions and strides, batch and heads first; of pictures batch and channels.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) dims: [i64; 4],
    pub(super) strides: [i64; 4],
}

impl Layout {
    /// The last two dimensions exchanged.
    pub(super) fn turned(self) -> Self {
        let turn = |[a, b, c, d]: [i64; 4]| [a, b, d, c];
        Self {
            dims: turn(self.dims),
            strides: turn(self.strides),
        }
    }
}

/// A tensor of a graph, by its number.
#[derive(Clone, Copy)]
pub(super) struct Node(usize);

impl Node {
    /// What the library knows it by.
    pub(super) fn id(self) -> i64 {
        self.0 as i64 + 1
    }
}

/// Tensors of the lengths, of each batch row, that limit a product's rows, columns or inner extent; None for no limit.
#[derive(Clone, Copy, Default)]
pub(super) struct ProductLengths {
    pub(super) rows: Option<Node>,
    pub(super) columns: Option<Node>,
    pub(super) inner: Option<Node>,
}

/// A graph while it is described.
pub(super) struct Graph {
    api: Arc<Api>,
    tensors: Vec<Descriptor>,
    layouts: Vec<Layout>,
    /// What operations do, apart from on what.
    modes: Vec<Descriptor>,
    operations: Vec<Descriptor>,
}

impl Graph {
    /// Of nothing yet.
    pub(super) fn new(api: &Arc<Api>) -> Self {
        Self {
            api: Arc::clone(api),
            tensors: Vec::new(),
            layouts: Vec::new(),
            modes: Vec::new(),
            operations: Vec::new(),
        }
    }

    /// A tensor in memory.
    pub(super) fn given(&mut self, numbers: Numbers, layout: Layout) -> Result<Node> {
        self.tensor(numbers, layout, Ok)
    }

    /// One f32 that is given by its value.
    pub(super) fn value(&mut self) -> Result<Node> {
        let layout = Layout {
            dims: [1; 4],
            strides: [1; 4],
        };
        self.tensor(Numbers::F32, layout, |tensor| {
            tensor.with_flag(attribute::TENSOR_BY_VALUE, true)
        })
    }

    /// A tensor that is in no memory.
    pub(super) fn between(&mut self, numbers: Numbers, layout: Layout) -> Result<Node> {
        self.tensor(numbers, layout, |tensor| {
            tensor.with_flag(attribute::TENSOR_VIRTUAL, true)
        })
    }

    fn tensor(
        &mut self,
        numbers: Numbers,
        layout: Layout,
        more: impl FnOnce(Descriptor) -> Result<Descriptor>,
    ) -> Result<Node> {
        let node = Node(self.tensors.len());
        let tensor = Descriptor::new(&self.api, Kind::Tensor)?
            .with_choice(attribute::TENSOR_TYPE, Holds::DataType, numbers as i32)?
            .with_integers(attribute::TENSOR_DIMENSIONS, &layout.dims)?
            .with_integers(attribute::TENSOR_STRIDES, &layout.strides)?
            .with_integers(attribute::TENSOR_ID, &[node.id()])?
            .with_integers(attribute::TENSOR_ALIGNMENT, &[ALIGNMENT as i64])?;
        self.tensors.push(more(tensor)?.finalized()?);
        self.layouts.push(layout);
        Ok(node)
    }

    /// `y` of numbers of `x`, and of `b` where the mode takes two.
    pub(super) fn pointwise(
        &mut self,
        mode: Pointwise,
        (x, b): (Node, Option<Node>),
        y: Node,
    ) -> Result<Node> {
        let computes_in = match mode {
            Pointwise::Less | Pointwise::And => Numbers::Flags,
            _ => Numbers::F32,
        };
        let mode = pointwise_mode(&self.api, mode as i32, computes_in)?.finalized()?;
        let others = b.map(|b| (attribute::POINTWISE_B, b));
        self.pointwise_operation(mode, x, others.as_slice(), y)
    }

    /// The same in f32 between operations, laid out as `x`.
    pub(super) fn pointwise_between(
        &mut self,
        mode: Pointwise,
        x: Node,
        b: Option<Node>,
    ) -> Result<Node> {
        let y = self.between(Numbers::F32, self.layout(x)?)?;
        self.pointwise(mode, (x, b), y)
    }

    /// Each number's place along an axis.
    pub(super) fn index(&mut self, x: Node, axis: i64) -> Result<Node> {
        let mode = pointwise_mode(&self.api, INDEX, Numbers::I32)?
            .with_integers(attribute::POINTWISE_AXIS, &[axis])?
            .finalized()?;
        let y = self.between(Numbers::I32, self.layout(x)?)?;
        self.pointwise_operation(mode, x, &[], y)
    }

    /// `x` where `kept`, otherwise `other`.
    pub(super) fn select(&mut self, kept: Node, x: Node, other: Node) -> Result<Node> {
        let mode = pointwise_mode(&self.api, SELECT, Numbers::F32)?.finalized()?;
        let y = self.between(Numbers::F32, self.layout(x)?)?;
        let others = [
            (attribute::POINTWISE_B, other),
            (attribute::POINTWISE_T, kept),
        ];
        self.pointwise_operation(mode, x, &others, y)
    }

    fn pointwise_operation(
        &mut self,
        mode: Descriptor,
        x: Node,
        others: &[(i32, Node)],
        y: Node,
    ) -> Result<Node> {
        let mut operation = Descriptor::new(&self.api, Kind::PointwiseOperation)?
            .with_descriptors(attribute::POINTWISE_DESCRIPTOR, &[&mode])?
            .with_descriptors(attribute::POINTWISE_X, &[self.at(x)?])?
            .with_descriptors(attribute::POINTWISE_Y, &[self.at(y)?])?
            .with_float(attribute::POINTWISE_ALPHA1, 1.0)?
            .with_float(attribute::POINTWISE_ALPHA2, 1.0)?;
        for &(attribute, other) in others {
            operation = operation.with_descriptors(attribute, &[self.at(other)?])?;
        }
        self.done(Some(mode), operation)?;
        Ok(y)
    }

    /// `y` of rows of `x`.
    pub(super) fn reduce(&mut self, reduction: Reduction, x: Node, y: Node) -> Result<Node> {
        let (operator, f32s) = (Holds::ReductionOperator, Numbers::F32 as i32);
        let mode = Descriptor::new(&self.api, Kind::Reduction)?
            .with_choice(attribute::REDUCTION_OPERATOR, operator, reduction as i32)?
            .with_choice(attribute::REDUCTION_COMPUTES_IN, Holds::DataType, f32s)?
            // As cuDNN's own frontend has it: attention's kernels sum rows in one order anyway, and know no other pattern.
            .with_flag(attribute::REDUCTION_DETERMINISTIC, false)?
            .finalized()?;
        let operation = Descriptor::new(&self.api, Kind::ReductionOperation)?
            .with_descriptors(attribute::REDUCTION_X, &[self.at(x)?])?
            .with_descriptors(attribute::REDUCTION_Y, &[self.at(y)?])?
            .with_descriptors(attribute::REDUCTION_DESCRIPTOR, &[&mode])?;
        self.done(Some(mode), operation)?;
        Ok(y)
    }

    /// `c = a b`, summed in f32.
    pub(super) fn product(
        &mut self,
        (a, b): (Node, Node),
        counts: ProductLengths,
        c: Node,
    ) -> Result<Node> {
        let f32s = Numbers::F32 as i32;
        let mode = Descriptor::new(&self.api, Kind::Matmul)?
            .with_choice(attribute::MATMUL_COMPUTES_IN, Holds::DataType, f32s)?
            .finalized()?;
        let mut operation = Descriptor::new(&self.api, Kind::MatmulOperation)?
            .with_descriptors(attribute::MATMUL_A, &[self.at(a)?])?
            .with_descriptors(attribute::MATMUL_B, &[self.at(b)?])?
            .with_descriptors(attribute::MATMUL_C, &[self.at(c)?])?
            .with_descriptors(attribute::MATMUL_DESCRIPTOR, &[&mode])?;
        let counts = [
            (attribute::MATMUL_ROWS, counts.rows),
            (attribute::MATMUL_COLUMNS, counts.columns),
            (attribute::MATMUL_INNER, counts.inner),
        ];
        for (attribute, count) in counts {
            if let Some(count) = count {
                operation = operation.with_descriptors(attribute, &[self.at(count)?])?;
            }
        }
        self.done(Some(mode), operation)?;
        Ok(c)
    }

    /// The convolution of a picture `x` by `weight` to `y`, summed in f32: `y` of `x`, or the gradient `x` of `y`'s.
    pub(super) fn convolve(
        &mut self,
        direction: Direction,
        window: Window,
        [x, weight, y]: [Node; 3],
    ) -> Result<()> {
        let (cross, f32s) = (CROSS_CORRELATION, Numbers::F32 as i32);
        let mode = Descriptor::new(&self.api, Kind::Convolution)?
            .with_choice(attribute::CONVOLUTION_COMPUTES_IN, Holds::DataType, f32s)?
            .with_choice(attribute::CONVOLUTION_MODE, Holds::ConvolutionMode, cross)?
            .with_integers(attribute::CONVOLUTION_AXES, &[2])?
            .with_integers(attribute::CONVOLUTION_DILATIONS, &[1, 1])?
            .with_integers(attribute::CONVOLUTION_STRIDES, &window.strides)?
            .with_integers(attribute::CONVOLUTION_PADDING_BEFORE, &window.before)?
            .with_integers(attribute::CONVOLUTION_PADDING_BEHIND, &window.behind)?
            .finalized()?;
        let (kind, attributes) = match direction {
            Direction::Forward => (Kind::ConvolutionForward, attribute::FORWARD),
            Direction::TowardsPicture => {
                (Kind::ConvolutionTowardsPicture, attribute::TOWARDS_PICTURE)
            }
        };
        let [alpha, beta, descriptor, of_weight, of_x, of_y] = attributes;
        let operation = Descriptor::new(&self.api, kind)?
            .with_float(alpha, 1.0)?
            .with_float(beta, 0.0)?
            .with_descriptors(descriptor, &[&mode])?
            .with_descriptors(of_weight, &[self.at(weight)?])?
            .with_descriptors(of_x, &[self.at(x)?])?
            .with_descriptors(of_y, &[self.at(y)?])?;
        self.done(Some(mode), operation)
    }

    /// `x` with its last two dimensions exchanged, between operations.
    pub(super) fn turn(&mut self, x: Node, numbers: Numbers) -> Result<Node> {
        let y = self.between(numbers, self.layout(x)?.turned())?;
        let operation = Descriptor::new(&self.api, Kind::ReshapeOperation)?
            .with_descriptors(attribute::RESHAPE_X, &[self.at(x)?])?
            .with_descriptors(attribute::RESHAPE_Y, &[self.at(y)?])?;
        self.done(None, operation)?;
        Ok(y)
    }

    fn done(&mut self, mode: Option<Descriptor>, operation: Descriptor) -> Result<()> {
        self.operations.push(operation.finalized()?);
        self.modes.extend(mode);
        Ok(())
    }

    fn at(&self, node: Node) -> Result<&Descriptor> {
        match self.tensors.get(node.0) {
            Some(tensor) => Ok(tensor),
            None => bail!("a tensor of another graph"),
        }
    }

    fn layout(&self, node: Node) -> Result<Layout> {
        match self.layouts.get(node.0) {
            Some(layout) => Ok(*layout),
            None => bail!("a tensor of another graph"),
        }
    }

    pub(super) fn operations(&self) -> Vec<&Descriptor> {
        self.operations.iter().collect()
    }
}

fn pointwise_mode(api: &Arc<Api>, mode: i32, computes_in: Numbers) -> Result<Descriptor> {
    let (pointwise, numbers) = (Holds::PointwiseMode, computes_in as i32);
    Descriptor::new(api, Kind::Pointwise)?
        .with_choice(attribute::POINTWISE_MODE, pointwise, mode)?
        .with_choice(attribute::POINTWISE_COMPUTES_IN, Holds::DataType, numbers)
}
