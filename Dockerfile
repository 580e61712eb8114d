# llmrec's server on NVIDIA GPUs. vLLM, PyTorch and CUDA come with vLLM's own image and stay as they are.
#
#     docker build --tag llmrec .
#     export LLMREC_API_KEY=... LLMREC_ADMIN_KEY=...
#     docker run --rm --gpus all --ipc=host --publish 8000:8000 --volume "$PWD/out/quickstart/model:/model" \
#         --env LLMREC_API_KEY --env LLMREC_ADMIN_KEY llmrec
#
# Other machines reach what is published, so without a key the server does not start (docs/security.md). In the place of
# --rm, `--restart on-failure` starts it again when an engine fails.
#
# What follows the image's name replaces the flags of CMD, e.g. `llmrec /model --host 0.0.0.0 --modes recommend`. The
# catalogue's log is written into the model folder, so user 1000 must be able to write there (or give --user).
FROM vllm/vllm-openai:v0.32.0

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The packages of the image that nothing below may replace are handed to pip as constraints.
WORKDIR /opt/llmrec
COPY pyproject.toml README.md LICENSE ./
COPY prompts prompts
COPY recipes recipes
COPY llmrec llmrec
RUN python3 -m pip list --format=freeze \
        | grep -iE '^(vllm|torch|nvidia|triton|flashinfer|transformers)' > /tmp/image.txt \
    && python3 -m pip install --no-cache-dir --break-system-packages --constraint /tmp/image.txt ".[serve]" \
    && rm /tmp/image.txt

# vLLM, Triton and Hugging Face keep their caches under HOME; the numeric id lets Kubernetes see that it is not root.
RUN useradd --create-home --uid 1000 --non-unique llmrec && mkdir /model /catalogue && chown 1000 /model /catalogue
USER 1000
ENV HOME=/home/llmrec VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
WORKDIR /home/llmrec

VOLUME /model
EXPOSE 8000
# An engine reads its weights and captures its graphs before the front answers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://localhost:8000/ready', timeout=4)"]
ENTRYPOINT ["python3", "-m", "llmrec.serving"]
CMD ["/model", "--host", "0.0.0.0"]
