sed 's/=1/=22/' Dockerfile >d; mv d Dockerfile
