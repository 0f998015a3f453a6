# Read by llama.cpp's project(), to build ggml for the processor right. GCC before 14 lets _tile_loadconfig read the first
# 8 bytes of its 64 only and drops what was stored in the rest, so that ggml configures no AMX tile, uses one all the
# same and ends with SIGILL. Without AMX it takes AVX-512.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14
   AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  cmake_language(DEFER CALL target_compile_options ggml-cpu PRIVATE -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
endif()
