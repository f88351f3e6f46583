//! Blocks in compressed memory and in a temporary file: what anonymous and private memory is kept in.
//!
//! Owns: [`SwapStore`](store::SwapStore), and [`Blocks`], which [`PrivateStore`](crate::PrivateStore)
//! is made of as well.
//!
//! A block is absent, zeros, compressed in the pool, or plain in a slot of the file ([`Place`](place::Place)). New
//! ones go to the pool if they shrink, and to the file if not; when the pool is full its oldest go to the file.
//!
//! **Locking.** One lock, that of the state (index, pool, slots, lengths), held for no longer than it takes to look up or
//! change some words; never while anything is compressed, read or written. What makes that safe:
//! - a reader holds what it looked up: compressed bytes are counted, slots are pinned (not reused until it is done);
//! - a write goes to slots of its own and is published whole, by changing the places of all its blocks under the lock;
//!   where it rests on what was there before (a part of a block, the length), only if that is there still;
//! - a block that moves from the pool to the file can be read in the pool until it is in the file.
mod blocks;
mod file;
mod index;
mod place;
mod pool;
mod read;
mod slots;
mod spill;
pub(crate) mod store;
mod write;

#[cfg(test)]
mod tests;

pub(crate) use blocks::Blocks;

/// Bytes of a block, the unit of everything here. Larger pages are several, smaller ones a part.
pub(crate) const BLOCK_BYTES: usize = 4096;
