printf 'node\n!node/keep/*.js\nDockerfile\n.dockerignore\n' >.dockerignore
mkdir -p node/keep node/x; echo a >node/keep/a.js; echo b >node/keep/b.ts; echo c >node/x/c.js
