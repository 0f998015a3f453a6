# syntax=docker/dockerfile:1.7
# Two images:
#     docker build --target cloud -t pice-cloud .   cloud node beside a model server, collector, every command
#     docker build --target edge -t pice-edge .     the same with llama.cpp: edge nodes, cloud nodes without a GPU
# No HEALTHCHECK: compose.yaml has one for each service.
ARG PYTHON_VERSION=3.12
ARG DEBIAN=bookworm

FROM python:${PYTHON_VERSION}-slim-${DEBIAN} AS python

# --- packages: made where pip and compilers are, copied to where they are not ---
FROM python AS build
RUN python -m venv --without-pip /opt/pice
WORKDIR /build
COPY constraints.txt ./

# Before the sources, so that a change of ours does not compile llama.cpp again. GGML_NATIVE=OFF: an image runs on other
# machines than the one that built it (AVX2 is still used). pip's cache would not notice other arguments, so none is used.
FROM build AS llama
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
COPY tools/ggml_cpu.cmake tools/llama_cpp_python.cmake tools/
ARG LLAMA_CMAKE_ARGS="-DGGML_NATIVE=OFF"
RUN CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=/build/tools/llama_cpp_python.cmake ${LLAMA_CMAKE_ARGS}" \
    pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python -c constraints.txt -w /wheels llama-cpp-python

FROM build AS cloud-packages
COPY pyproject.toml README.md LICENSE ./
COPY pice pice
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/pice/bin/python install -c constraints.txt ".[cluster]"

FROM cloud-packages AS edge-packages
COPY --from=llama /wheels /wheels
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/pice/bin/python install -c constraints.txt --find-links /wheels ".[cluster,llama]"

# --- images: Python, the packages, and a user who owns nothing ---
FROM python AS run
ARG REVISION=unknown
LABEL org.opencontainers.image.title="PICE" \
      org.opencontainers.image.description="Progressive LLM inference between a cloud and many edge sites" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
ENV HOME=/tmp \
    PATH=/opt/pice/bin:$PATH \
    PICE_CONFIG=/etc/pice/cluster.toml \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
ENTRYPOINT ["pice"]

FROM run AS edge
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=edge-packages /opt/pice /opt/pice
USER 10001:10001

FROM run AS cloud
COPY --from=cloud-packages /opt/pice /opt/pice
USER 10001:10001
