# A terrazzo server for CPUs. No model is in the image: mount the folders that it shall serve.
#
#   docker build -t terrazzo .
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD/models:/models:ro" terrazzo serve /models/reviews --host 0.0.0.0
#
# Everything comes from PyPI but torch itself: PyPI's torch for x86-64 brings gigabytes of CUDA libraries, so it is
# taken from PyTorch's index of CPU wheels. A build without that index takes a wheel from wheels/ beside this file:
#
#   mkdir wheels && cp torch-2.13.0+cpu-*.whl wheels/
#   docker build -t terrazzo --build-arg TORCH_INDEX=https://pypi.org/simple .
#
# --build-arg EXTRAS=serve,export adds what `terrazzo export` needs to make int8 folders and ONNX files.

ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/terrazzo
ENV PATH=/opt/terrazzo/bin:$PATH
WORKDIR /src
# What torch needs comes from PyPI, torch itself from TORCH_INDEX or wheels/ (LICENSE is there so that COPY finds a file).
COPY LICENSE wheels* wheels/
RUN pip install filelock fsspec jinja2 networkx numpy "setuptools>=77.0.3" sympy "typing-extensions>=4.10" \
    && pip install --no-deps --find-links wheels --index-url "${TORCH_INDEX}" "torch==${TORCH}" \
    && python -c "import torch; assert torch.version.cuda is None, f'torch {torch.__version__} brings CUDA: see TORCH_INDEX'" \
    && pip freeze | grep '^torch==' > /opt/terrazzo/constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --constraint /opt/terrazzo/constraints.txt ".[${EXTRAS}]" \
    && python -c "import terrazzo, fastapi, openvino, uvicorn"

FROM python:${PYTHON}
COPY --from=build /opt/terrazzo /opt/terrazzo
RUN useradd --uid 10001 --create-home terrazzo
ENV PATH=/opt/terrazzo/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /models
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health/ready', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["terrazzo"]
CMD ["serve", "--help"]
