# opendino on a CPU, without the libraries of CUDA: docker build -t opendino .
# docs/deployment.md says how to run it.
FROM python:3.12-slim

COPY pyproject.toml README.md LICENSE /opt/opendino/
COPY src /opt/opendino/src
# uv knows where PyTorch's packages for a CPU are.
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend cpu "/opt/opendino[app,export,medical,science,serve]" \
    && pip uninstall --yes uv

# Any user may run it (docker run --user), with this as a home.
RUN useradd --create-home --uid 1000 opendino && chmod 777 /home/opendino
ENV HOME=/home/opendino
USER 1000
WORKDIR /home/opendino
ENTRYPOINT ["opendino"]
CMD ["--help"]
