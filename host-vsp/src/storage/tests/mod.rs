//! The VSP against a guest played by hand.
