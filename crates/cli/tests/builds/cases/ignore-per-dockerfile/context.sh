mkdir docker; mv Dockerfile docker/My.Dockerfile; echo one >one; echo two >two
echo one >docker/My.Dockerfile.dockerignore; echo two >.dockerignore
