# The course on any machine with Docker, in a devcontainer and on Binder, with the locked versions, without a GPU.
FROM python:3.11-slim-bookworm AS system

# SPU needs libgomp1, which slim images lack.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends git libgomp1 make && rm -rf /var/lib/apt/lists/*

# Binder asks for a user of this number, and hands over both arguments.
ARG NB_USER=jovyan
ARG NB_UID=1000
RUN useradd --create-home --uid ${NB_UID} --shell /bin/bash ${NB_USER} && \
    install --directory --owner=${NB_UID} /home/${NB_USER}/cipherdm
USER ${NB_USER}
WORKDIR /home/${NB_USER}/cipherdm

FROM system

# May name PyTorch's index of builds without CUDA, which are gigabytes smaller.
ARG PIP_EXTRA_INDEX_URL
ARG NB_USER=jovyan
ARG NB_UID=1000
COPY --chown=${NB_UID} . .
RUN make setup
ENV PATH=/home/${NB_USER}/cipherdm/.venv/bin:${PATH}

EXPOSE 8888
CMD ["make", "lab", "LAB=--ip=0.0.0.0 --no-browser"]
