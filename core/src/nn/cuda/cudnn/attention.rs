//! Attention as graphs of cuDNN's: the patterns by which it knows them, as its own frontend writes them.

use candle_core::Result;

use super::api::Handle;
use super::graph::{Graph, Layout, Node, Numbers, Pointwise, ProductLengths, Reduction};
use super::plan::{ExecutionPlan, SameBits};

/// The extents of an attention, and whether each batch row sees only so many keys: what a plan is made for. Its scale is
/// given when it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attention {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) width: usize,
    pub(crate) masked: bool,
}

impl Attention {
    /// Heads of `length` tokens that lie as `[batch, length, heads, width]`.
    fn packed(&self, length: usize) -> Layout {
        let (heads, width) = (self.heads, self.width);
        layout(
            [self.batch, heads, length, width],
            [length * heads * width, width, heads * width, 1],
        )
    }

    fn scores(&self) -> Layout {
        let (heads, n, m) = (self.heads, self.queries, self.keys);
        layout([self.batch, heads, n, m], [heads * n * m, n * m, m, 1])
    }

    /// A number a query.
    fn row(&self) -> Layout {
        let (heads, n) = (self.heads, self.queries);
        layout([self.batch, heads, n, 1], [heads * n, n, 1, 1])
    }

    /// A number a batch row.
    fn lengths(&self) -> Layout {
        layout([self.batch, 1, 1, 1], [1; 4])
    }
}

fn layout(dims: [usize; 4], strides: [usize; 4]) -> Layout {
    Layout {
        dims: dims.map(|d| d as i64),
        strides: strides.map(|s| s as i64),
    }
}

/// How many queries and keys of each batch row count, and what is put in place of a score that does not.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    pub(super) queries: Node,
    pub(super) keys: Node,
    pub(super) nothing: Node,
}

impl Mask {
    fn of(graph: &mut Graph, attention: &Attention) -> Result<Option<Self>> {
        if !attention.masked {
            return Ok(None);
        }
        Ok(Some(Self {
            queries: graph.given(Numbers::I32, attention.lengths())?,
            keys: graph.given(Numbers::I32, attention.lengths())?,
            nothing: graph.value()?,
        }))
    }

    /// The scores that count.
    fn apply(self, graph: &mut Graph, scores: Node, layout: Layout) -> Result<Node> {
        let rows = graph.index(scores, 2)?;
        let columns = graph.index(scores, 3)?;
        let rows = flags(graph, Pointwise::Less, (rows, self.queries), layout)?;
        let columns = flags(graph, Pointwise::Less, (columns, self.keys), layout)?;
        let both = flags(graph, Pointwise::And, (rows, columns), layout)?;
        graph.select(both, scores, self.nothing)
    }
}

fn flags(graph: &mut Graph, mode: Pointwise, (x, b): (Node, Node), layout: Layout) -> Result<Node> {
    let y = graph.between(Numbers::Flags, layout)?;
    graph.pointwise(mode, (x, Some(b)), y)
}

/// Which of queries (rows of scores) and keys (columns) are a product's rows, columns and inner numbers.
struct Roles {
    queries: Option<Node>,
    keys: Option<Node>,
}

impl Roles {
    fn of(mask: Option<Mask>) -> Self {
        Self {
            queries: mask.map(|mask| mask.queries),
            keys: mask.map(|mask| mask.keys),
        }
    }

    /// Scores: queries by keys.
    fn scores(&self) -> ProductLengths {
        ProductLengths {
            rows: self.queries,
            columns: self.keys,
            inner: None,
        }
    }

    /// Something a query, summed over keys.
    fn of_queries(&self) -> ProductLengths {
        ProductLengths {
            rows: self.queries,
            columns: None,
            inner: self.keys,
        }
    }

    /// Something a key, summed over queries.
    fn of_keys(&self) -> ProductLengths {
        ProductLengths {
            rows: self.keys,
            columns: None,
            inner: self.queries,
        }
    }
}

/// A plan of attention, with the tensors that it is run on.
pub(super) struct Forward {
    pub(super) plan: ExecutionPlan,
    pub(super) q: Node,
    pub(super) k: Node,
    pub(super) v: Node,
    pub(super) scale: Node,
    pub(super) mask: Option<Mask>,
    pub(super) out: Node,
    pub(super) stats: Node,
}

impl Forward {
    pub(super) fn new(handle: &Handle, attention: &Attention) -> Result<Self> {
        let mut made = Graph::new(handle.api());
        let graph = &mut made;
        let (n, m) = (attention.queries, attention.keys);
        let (scores, row) = (attention.scores(), attention.row());
        let q = graph.given(Numbers::Bf16, attention.packed(n))?;
        // k^T by exchanged strides: nothing is copied.
        let k = graph.given(Numbers::Bf16, attention.packed(m).turned())?;
        let v = graph.given(Numbers::Bf16, attention.packed(m))?;
        let scale = graph.value()?;
        let mask = Mask::of(graph, attention)?;
        let roles = Roles::of(mask);

        let x = graph.between(Numbers::F32, scores)?;
        let x = graph.product((q, k), roles.scores(), x)?;
        let mut x = graph.pointwise_between(Pointwise::Multiply, x, Some(scale))?;
        if let Some(mask) = mask {
            x = mask.apply(graph, x, scores)?;
        }
        let largest = graph.between(Numbers::F32, row)?;
        let largest = graph.reduce(Reduction::Largest, x, largest)?;
        // Less the largest, so that no exponential overflows; its place in the logarithms is taken below.
        let x = graph.pointwise_between(Pointwise::Subtract, x, Some(largest))?;
        let x = graph.pointwise_between(Pointwise::Exponential, x, None)?;
        let sum = graph.between(Numbers::F32, row)?;
        let sum = graph.reduce(Reduction::Sum, x, sum)?;
        let logarithm = graph.pointwise_between(Pointwise::Logarithm, sum, None)?;
        let stats = graph.given(Numbers::F32, row)?;
        graph.pointwise(Pointwise::Add, (largest, Some(logarithm)), stats)?;
        let weights = graph.between(Numbers::Bf16, scores)?;
        graph.pointwise(Pointwise::Divide, (x, Some(sum)), weights)?;
        let out = graph.given(Numbers::Bf16, attention.packed(n))?;
        graph.product((weights, v), roles.of_queries(), out)?;
        Ok(Self {
            plan: ExecutionPlan::new(handle, made, SameBits::ByEngine)?,
            q,
            k,
            v,
            scale,
            mask,
            out,
            stats,
        })
    }
}

/// A plan of attention's gradients, with the tensors that it is run on.
pub(super) struct Backward {
    pub(super) plan: ExecutionPlan,
    pub(super) q: Node,
    pub(super) k: Node,
    pub(super) v: Node,
    pub(super) out: Node,
    pub(super) stats: Node,
    pub(super) gradient: Node,
    pub(super) scale: Node,
    pub(super) one: Node,
    pub(super) mask: Option<Mask>,
    /// Of every query, the product of its result and the result's gradient: cuDNN's to write and read.
    pub(super) inner: Node,
    pub(super) dq: Node,
    pub(super) dk: Node,
    pub(super) dv: Node,
}

impl Backward {
    /// The gradient of q is a product of its own, with all of the scores' gradients in the workspace, and not added up in
    /// f32 by whoever comes first: so the same bits come out every time.
    pub(super) fn new(handle: &Handle, attention: &Attention) -> Result<Self> {
        let mut made = Graph::new(handle.api());
        let graph = &mut made;
        let (n, m) = (attention.queries, attention.keys);
        let (of_queries, of_keys) = (attention.packed(n), attention.packed(m));
        let (scores, row) = (attention.scores(), attention.row());
        let q = graph.given(Numbers::Bf16, of_queries)?;
        let k = graph.given(Numbers::Bf16, of_keys.turned())?;
        let v = graph.given(Numbers::Bf16, of_keys.turned())?;
        let out = graph.given(Numbers::Bf16, of_queries)?;
        let stats = graph.given(Numbers::F32, row)?;
        let gradient = graph.given(Numbers::Bf16, of_queries)?;
        let (scale, one) = (graph.value()?, graph.value()?);
        let mask = Mask::of(graph, attention)?;
        let roles = Roles::of(mask);

        let products = graph.between(Numbers::F32, products_layout(attention))?;
        graph.pointwise(Pointwise::Multiply, (gradient, Some(out)), products)?;
        let sum = graph.between(Numbers::F32, row)?;
        graph.reduce(Reduction::Sum, products, sum)?;
        let inner = graph.given(Numbers::F32, row)?;
        graph.pointwise(Pointwise::Multiply, (sum, Some(one)), inner)?;

        let x = graph.between(Numbers::F32, scores)?;
        let x = graph.product((q, k), roles.scores(), x)?;
        let x = graph.pointwise_between(Pointwise::Multiply, x, Some(scale))?;
        let mut x = graph.pointwise_between(Pointwise::Subtract, x, Some(stats))?;
        if let Some(mask) = mask {
            x = mask.apply(graph, x, scores)?;
        }
        // With the saved logarithms there is no largest to find and no sum to divide by.
        let weights = graph.pointwise_between(Pointwise::Exponential, x, None)?;
        let turned = graph.turn(weights, Numbers::Bf16)?;
        let dv = graph.given(Numbers::Bf16, of_keys)?;
        graph.product((turned, gradient), roles.of_keys(), dv)?;

        let x = graph.between(Numbers::F32, scores)?;
        let x = graph.product((gradient, v), roles.scores(), x)?;
        let x = graph.pointwise_between(Pointwise::Subtract, x, Some(inner))?;
        let x = graph.pointwise_between(Pointwise::Multiply, x, Some(weights))?;
        let x = graph.pointwise_between(Pointwise::Multiply, x, Some(scale))?;
        let turned = graph.turn(x, Numbers::Bf16)?;
        let dk = graph.given(Numbers::Bf16, of_keys)?;
        graph.product((turned, q), roles.of_keys(), dk)?;

        let turned = graph.turn(k, Numbers::F32)?;
        let dq = graph.given(Numbers::Bf16, of_queries)?;
        graph.product((x, turned), roles.of_queries(), dq)?;
        Ok(Self {
            plan: ExecutionPlan::new(handle, made, SameBits::ByForm)?,
            q,
            k,
            v,
            out,
            stats,
            gradient,
            scale,
            one,
            mask,
            inner,
            dq,
            dk,
            dv,
        })
    }
}

/// The strides that cuDNN's frontend gives to products that are in no memory.
fn products_layout(attention: &Attention) -> Layout {
    let (heads, n, width) = (attention.heads, attention.queries, attention.width);
    layout(
        [attention.batch, heads, n, width],
        [heads * n * width, n * width, heads * width, 1],
    )
}
