sed 's/USER app/USER www/' Dockerfile >d; mv d Dockerfile
