sed 's/chown=1/chown=22/' Dockerfile >d; mv d Dockerfile
