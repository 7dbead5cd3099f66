mv Dockerfile dockerfile
