"""The older name of `taming_jax.show_data`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("taming_jax.show_data", run_name="__main__", alter_sys=True)
