# Read by llama.cpp's project() when llama-cpp-python is built with -DCMAKE_PROJECT_llama.cpp_INCLUDE=<this file>.
include(${CMAKE_CURRENT_LIST_DIR}/ggml_cpu.cmake)
# The library of llama.cpp's own programs takes half of the build and nothing in a Python process uses it; the package
# asks for it by force, so that no option of its own leaves it out.
set(LLAMA_BUILD_COMMON OFF)
