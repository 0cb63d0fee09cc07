"""Networks, as Flax modules and pure functions: both stages, the discriminator, and LPIPS."""
