rm Dockerfile
