"""A GGUF model by llama.cpp: what the engine in `pice.engine.llama_cpp` is made of."""
