mkdir real; mv Dockerfile real/; echo real >real/a; ln -s real link
