//! The adapter before a guest played by hand.

mod guest;
mod lies;
mod streams;
mod truths;
