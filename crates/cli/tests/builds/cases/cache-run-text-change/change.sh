sed 's/echo  two/echo two/' Dockerfile >d; mv d Dockerfile
