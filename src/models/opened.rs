//! A denoiser that was found: its architecture told, its headers read once, its weights not loaded.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

use super::experts;
use super::family::DescribedWeights;
use super::layout::read_json;
use super::schedule::{Schedule, is_marker};
use super::source::FileSource;
use super::{
    Activations, Architecture, Components, Denoiser, Error, Family, Flavor, Placement, Source,
    StepShape, quoted,
};
use crate::lora::LinearShape;
use crate::nn::Frozen;
use crate::nn::weights::Weights;

/// Numbers of a tensor that is read to tell two networks apart.
const FEW: usize = 1 << 20;

/// A denoiser in its files.
pub struct OpenedDenoiser {
    /// Its family.
    pub family: &'static Family,
    /// The parts of the model it belongs to.
    pub components: Components,
    /// Which of these it is: `transformer`, `unet`.
    pub part: &'static str,
    described: DescribedWeights,
    tensors: Vec<(String, Vec<usize>)>,
    linears: Vec<LinearShape>,
}

impl OpenedDenoiser {
    pub(super) fn new(
        family: &'static Family,
        part: &'static str,
        components: Components,
    ) -> Result<Self, Error> {
        let described = (family.open)(components.get(part)?)?;
        let (tensors, linears) = wanted(&*described.architecture)?;
        Ok(Self {
            family,
            part,
            components,
            described,
            tensors,
            linears,
        })
    }

    /// Checks by the files' headers that they hold every tensor of the network, in the right shape, and no other.
    ///
    /// # Errors
    /// For the first that is missing, misshapen or too many.
    pub fn check_whole(&self) -> Result<(), Error> {
        let weights = &self.described.weights;
        weights.require(&self.tensors)?;
        let mut extra = weights.extra(&self.tensors);
        extra.retain(|name| !is_marker(name));
        match extra.first() {
            Some(first) => Err(Error::ExtraTensors {
                files: weights.describe(),
                count: extra.len(),
                first: first.clone(),
            }),
            None => Ok(()),
        }
    }

    /// What the model says of its noise schedule, or the scheduler's configuration that a person names instead.
    ///
    /// # Errors
    /// If it cannot be read, contradicts itself, or is a schedule that this program does not have.
    pub fn schedule(&self, named: Option<&Path>) -> Result<Schedule, Error> {
        let denoiser = self.components.get(self.part)?;
        // All flavors of a family are of one kind.
        let flow = self.family.flavors[0].process.is_flow();
        Schedule::read(&self.components, denoiser, flow, named)
    }

    /// The fields of its configuration, if it has one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn config(&self) -> Result<Option<Map<String, Value>>, Error> {
        let denoiser = self.components.get(self.part)?;
        let Some(path) = &denoiser.config else {
            return Ok(None);
        };
        let mut fields = read_json(path)?;
        // What wrote it, and when.
        fields.retain(|field, _| !field.starts_with('_'));
        Ok(Some(fields))
    }

    /// The weights under canonical names (diffusers'), whatever the files call them.
    pub fn weights(&self) -> &Weights {
        &self.described.weights
    }

    /// Canonical name and shape of every tensor of the network, there or not: what the base model's digest is made of.
    pub fn tensors(&self) -> &[(String, Vec<usize>)] {
        &self.tensors
    }

    /// Every linear and convolution that can carry an adapter.
    pub fn linears(&self) -> &[LinearShape] {
        &self.linears
    }

    /// The flavors that the architecture and the place of the files allow; several where only the weights' values differ.
    pub fn flavors(&self) -> Vec<&'static Flavor> {
        let could_be = |flavor: &&Flavor| {
            self.described.architecture.could_be(flavor)
                && experts::part(self.family, &self.components, flavor).is_ok()
        };
        self.family.flavors.iter().filter(could_be).collect()
    }

    /// Checks that it can be the flavor that an Experiment names.
    ///
    /// # Errors
    /// If it is another one.
    pub fn check_flavor(&self, wanted: &Flavor) -> Result<(), Error> {
        let possible = self.flavors();
        if possible.iter().any(|flavor| flavor.name == wanted.name) {
            return Ok(());
        }
        Err(Error::WrongFlavor {
            path: self.components.path.clone(),
            wanted: wanted.name.to_owned(),
            detected: quoted(possible.iter().map(|flavor| flavor.name)),
        })
    }

    /// Channels of the denoiser's context.
    pub fn context_width(&self) -> usize {
        self.described.architecture.context_width()
    }

    /// What a training step keeps of a forward pass.
    pub fn activations(&self, step: &StepShape) -> Activations {
        self.described.architecture.activations(step)
    }

    /// Whether a tensor of both is the same, bit for bit: of networks that were trained apart none is. One small tensor is read.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn is_same_network(&self, other: &Self) -> Result<bool, Error> {
        let few = |(_, shape): &&(String, Vec<usize>)| shape.iter().product::<usize>() <= FEW;
        let Some(tensor) = self.tensors.iter().find(few) else {
            return Ok(false);
        };
        if !other.tensors.contains(tensor) {
            return Ok(false);
        }
        let (name, shape) = tensor;
        let placement = Placement::default();
        let read = |denoiser: &Self| {
            let source = FileSource::new(&denoiser.described.weights, &placement);
            let numbers = source.tensor(shape, name)?.flatten_all();
            let numbers = numbers.and_then(|numbers| numbers.to_vec1::<f32>());
            numbers.map_err(|source| Error::Device {
                what: format!("comparing `{name}` of two networks"),
                source,
            })
        };
        Ok(read(self)? == read(other)?)
    }

    /// The denoiser, of tensors of another source than its files.
    ///
    /// # Errors
    /// If the source lacks a tensor.
    pub fn build(&self, source: &dyn Source) -> Result<Box<dyn Denoiser>, Error> {
        self.described.architecture.build(source)
    }

    /// The denoiser, loaded from its files.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen, too many or not finite, or the device has no room.
    pub fn load(&self, placement: &Placement) -> Result<Box<dyn Denoiser>, Error> {
        self.check_whole()?;
        self.build(&FileSource::new(&self.described.weights, placement))
    }
}

/// Name and shape of each tensor, and all that can carry an adapter.
pub(super) type Lists = (Vec<(String, Vec<usize>)>, Vec<LinearShape>);

/// What a network asks for while it is built.
pub(super) fn wanted(architecture: &dyn Architecture) -> Result<Lists, Error> {
    let recorder = Recorder::default();
    architecture.build(&recorder)?;
    let tensors = recorder.tensors.into_inner().into_iter().collect();
    Ok((tensors, recorder.linears.into_inner()))
}

/// Writes down what it is asked for, so that no list of a network's tensors is kept beside the network's code.
#[derive(Default)]
struct Recorder {
    /// A tensor may be asked for twice.
    tensors: RefCell<BTreeMap<String, Vec<usize>>>,
    linears: RefCell<Vec<LinearShape>>,
}

impl Recorder {
    /// A tensor of zeros that takes the memory of one.
    fn nothing(shape: &[usize]) -> Result<Tensor, Error> {
        let made = Tensor::zeros((), DType::F32, &Device::Cpu).and_then(|t| t.broadcast_as(shape));
        made.map_err(|source| Error::Device {
            what: format!("describing a tensor of shape {shape:?}"),
            source,
        })
    }

    fn carries_adapter(&self, shape: &[usize], name: &str, reached: bool) {
        let (&[outputs, inputs, ref kernel @ ..], Some(name)) =
            (shape, name.strip_suffix(".weight"))
        else {
            return;
        };
        self.linears.borrow_mut().push(LinearShape {
            name: name.to_owned(),
            outputs,
            inputs,
            kernel: kernel.first().copied(),
            reached,
        });
    }
}

impl Source for Recorder {
    fn tensor(&self, shape: &[usize], name: &str) -> Result<Tensor, Error> {
        let mut tensors = self.tensors.borrow_mut();
        tensors.insert(name.to_owned(), shape.to_vec());
        Self::nothing(shape)
    }

    fn matrix(&self, shape: [usize; 2], name: &str) -> Result<Frozen, Error> {
        self.carries_adapter(&shape, name, true);
        Ok(self.tensor(&shape, name)?.into())
    }

    fn untrained(&self, shape: [usize; 2], name: &str) -> Result<Frozen, Error> {
        Ok(self.tensor(&shape, name)?.into())
    }

    fn kernel(&self, shape: [usize; 4], name: &str) -> Result<Tensor, Error> {
        self.carries_adapter(&shape, name, true);
        self.tensor(&shape, name)
    }

    fn unread(&self, shape: &[usize], name: &str) -> Result<(), Error> {
        if shape.len() > 1 {
            self.carries_adapter(shape, name, false);
        }
        self.tensor(shape, name).map(|_| ())
    }
}
