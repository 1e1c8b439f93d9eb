//! What the manifest, the design and the guide promise about the code itself.
#[test] fn placeholder() {}
