echo one >a; echo x >ignored; printf 'ignored\nDockerfile\n.dockerignore\n' >.dockerignore
