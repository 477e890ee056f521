"""The gpu backend: cuBLAS for matrix products, Triton for everything sparse."""
