//! Key services as they are: OpenBao, SoftHSM2, AWS by moto, and a small Google of our own, because none is published.

mod pkcs11;
mod transit;
mod world;
