echo t >target; ln -s target link; echo target >.dockerignore
