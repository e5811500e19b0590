//! The sum of all ranks' gradients, in the order of the micro-batches: the same additions as one process makes, so the same bits where
//! each gradient is.
//!
//! A reduction inside a library adds in an order that depends on the number of ranks and on how they are wired. Here each rank's gradients
//! come as they are, and are added by rank, then by pass.

use candle_core::{Device, Tensor};

use super::{Error, Ranks};
#[cfg(feature = "cuda")]
use crate::device::nccl;
use crate::nn::Kernels;
use crate::nn::flat::accumulate_all;

/// Adds up gradients over ranks.
#[derive(Debug)]
pub struct Sums(Way);

/// By which way they come.
#[derive(Debug)]
enum Way {
    /// Over the connections to rank 0, by way of the CPU's memory: rank 0 adds.
    Tcp,
    /// From GPU to GPU by NVIDIA's NCCL: each rank adds for itself.
    #[cfg(feature = "cuda")]
    Nccl(nccl::Communicator),
}

/// A rank's gradients in one round, which all ranks make together: of each pass, with the factor that it counts by.
pub struct Round<'a> {
    /// This rank's gradients, `[n]` in f32 each, not multiplied yet.
    pub mine: &'a [Tensor],
    /// The factors of every rank's passes, by rank.
    pub factors: &'a [Vec<f64>],
}

impl Sums {
    /// The fastest way there is between these ranks, and a sentence where it is slower than it could be.
    ///
    /// # Errors
    /// If a rank is lost, or NCCL is there on every rank and does not start.
    pub fn open(ranks: &Ranks, device: &Device) -> Result<(Self, Option<String>), Error> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = device
            && !ranks.is_alone()
        {
            return open_nccl(ranks, gpu);
        }
        // Of the CUDA build only.
        let _ = (ranks, device);
        Ok((Self(Way::Tcp), None))
    }

    /// Adds a round's gradients to `gradient`, `[n]` in f32, in place. Over TCP only rank 0's holds them until [`Self::finish`].
    ///
    /// # Errors
    /// If a rank is lost or the device fails.
    pub fn add(
        &self,
        ranks: &Ranks,
        round: &Round<'_>,
        kernels: &Kernels,
        gradient: &Tensor,
    ) -> Result<(), Error> {
        let all = round.factors.iter().enumerate();
        let all = all.flat_map(|(rank, factors)| factors.iter().map(move |factor| (rank, *factor)));
        let mut mine = round.mine.iter();
        for (rank, factor) in all {
            let own = match rank == ranks.rank() {
                true => Some(mine.next().ok_or_else(|| uncounted(rank))?),
                false => None,
            };
            match &self.0 {
                Way::Tcp => add_over_tcp(ranks, (rank, factor), own, (kernels, gradient))?,
                #[cfg(feature = "cuda")]
                Way::Nccl(nccl) => {
                    let room = gradient.zeros_like()?;
                    let given = own.unwrap_or(&room);
                    nccl.broadcast(given, rank)?;
                    nccl.wait(&|| ranks.look())?;
                    accumulate_all(kernels, gradient, &[(0, given.clone())], factor)?;
                }
            }
        }
        Ok(())
    }

    /// Ends a step: `gradient` is the sum on every rank afterwards.
    ///
    /// # Errors
    /// If a rank is lost or the device fails.
    pub fn finish(&self, ranks: &Ranks, gradient: &Tensor) -> Result<(), Error> {
        match &self.0 {
            Way::Tcp if ranks.is_first() => {
                let numbers = gradient.to_vec1::<f32>()?;
                let mut peers = ranks.peers.iter();
                peers.try_for_each(|peer| peer.send_numbers(&numbers))
            }
            Way::Tcp => {
                let device = gradient.device().clone();
                let mut put = |start, numbers: &[f32]| {
                    let piece = Tensor::from_slice(numbers, numbers.len(), &device)?;
                    gradient.slice_set(&piece, 0, start)
                };
                let count = gradient.elem_count();
                ranks
                    .to_first()?
                    .receive_numbers(count, &mut put, &|| Ok(()))
            }
            #[cfg(feature = "cuda")]
            Way::Nccl(_) => Ok(()),
        }
    }
}

/// One pass's gradient, `own` where it is this rank's: rank 0 adds it, its rank sends it.
fn add_over_tcp(
    ranks: &Ranks,
    (rank, factor): (usize, f64),
    own: Option<&Tensor>,
    (kernels, gradient): (&Kernels, &Tensor),
) -> Result<(), Error> {
    match (ranks.is_first(), own) {
        (true, Some(own)) => Ok(accumulate_all(
            kernels,
            gradient,
            &[(0, own.clone())],
            factor,
        )?),
        (true, None) => {
            let device = gradient.device().clone();
            let mut add = |start, numbers: &[f32]| {
                let piece = Tensor::from_slice(numbers, numbers.len(), &device)?;
                accumulate_all(kernels, gradient, &[(start, piece)], factor)
            };
            let peer = ranks.peer(rank)?;
            let watch = || ranks.look_at_others(peer);
            peer.receive_numbers(gradient.elem_count(), &mut add, &watch)
        }
        (false, Some(own)) => ranks.to_first()?.send_numbers(&own.to_vec1::<f32>()?),
        (false, None) => Ok(()),
    }
}

fn uncounted(rank: usize) -> Error {
    Error::Garbled {
        rank,
        what: "fewer gradients than it said".to_owned(),
    }
}

#[cfg(feature = "cuda")]
fn open_nccl(
    ranks: &Ranks,
    gpu: &candle_core::CudaDevice,
) -> Result<(Sums, Option<String>), Error> {
    let library = nccl::Library::open(&ranks.libraries);
    let lacks = library.as_ref().err().cloned();
    let all = ranks.exchange(lacks)?;
    let lacking = all
        .iter()
        .enumerate()
        .find_map(|(rank, why)| Some((rank, why.as_ref()?)));
    let library = match (library, lacking) {
        (Ok(library), None) => library,
        (Err(why), None) => return Err(Error::Tensor(candle_core::Error::Msg(why))),
        (_, Some((rank, why))) => {
            let note = format!(
                "gradients go over TCP, which is slower than NCCL: rank {rank}: {}",
                crate::shown::text(why)
            );
            return Ok((Sums(Way::Tcp), Some(note)));
        }
    };
    let id = match ranks.is_first() {
        true => library.unique_id()?,
        false => Vec::new(),
    };
    let id = ranks.tell_bytes(id, 1 << 10)?;
    let place = (ranks.rank(), ranks.world());
    Ok((
        Sums(Way::Nccl(nccl::Communicator::new(
            library, gpu, place, &id,
        )?)),
        None,
    ))
}
