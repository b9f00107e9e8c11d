//! The adapter before a guest played by hand.

mod channels;
mod guest;
mod joined;
mod lies;
mod streams;
mod truths;
mod wire;
