# One case a line: a shell command, in which `docker` is the client under test. Cases run one after the other and share what
# they made. The image `parity` is a busybox; everything has a name that begins with `p-`.

# run: standard streams
docker run --rm parity echo hi
docker run --rm parity sh -c 'echo out; echo err >&2; exit 7'
printf 'a\nb\n' | docker run --rm -i parity wc -l
head -c 300000 /dev/zero | docker run --rm -i parity wc -c
printf x | docker run --rm parity wc -c
docker run --rm -a stdout parity sh -c 'echo out; echo err >&2'
docker run --rm -a stderr parity sh -c 'echo out; echo err >&2'
script -qec "docker run --rm -it parity sh -c 'tty; test -t 0 && echo terminal'" /dev/null </dev/null
script -qec "docker run --rm -t parity sh -c 'echo err >&2; exit 3'" /dev/null </dev/null
docker run --rm -it parity true </dev/null
docker run --rm --init parity sh -c 'cat /proc/1/comm'
docker run --rm parity sh -c 'kill -9 $$'
docker run --rm parity sh -c 'kill -TERM $$; sleep 1; echo alive'

# run: what cannot be run
docker run --rm parity nosuch
docker run --rm parity /etc
docker run --rm parity /etc/passwd
docker run --rm --nosuchflag parity true
docker run --rm
docker exec p-one
docker rename p-one
docker logs
docker logs a b
docker ps nosuch
docker container logs
docker stop -x p
docker nosuch
docker container nosuch
docker run --rm -p abc parity true
docker run --rm -p 99999:80 parity true
docker run --rm -v relative/path:/x:bad parity true
docker run --rm --mount type=bind,src=/nosuch-dir,dst=/x parity true
docker run --rm --mount type=nosuch,dst=/x parity true
docker run --rm --env-file /nosuch-file parity true
docker run --rm --network nosuch parity true
docker run --rm --memory 1k parity true
docker run --rm --cpus 1000000 parity true 2>&1 | tr -d 0-9
docker run --rm --restart always parity true
docker run --rm --cap-add nosuch parity true
docker run --rm --ulimit nofile=5:1 parity true
docker run --rm --dns bad parity true
docker run --rm --sysctl kernel.foo=1 parity true
docker run --rm --user nosuch parity true
docker run --rm --pid container:nosuch parity true
docker run --rm --name 'bad name' parity true
docker run --rm -e =x parity true
docker run --rm Parity true

# run: what the container is
docker run --rm -e A=1 -e B=two -w /tmp parity sh -c 'echo $A $B $PWD $HOME $PATH'
docker run --rm -u 1000:1000 parity id
docker run --rm -u nobody parity sh -c 'id -u; id -g; grep CapEff /proc/self/status'
docker run --rm --hostname p-host parity hostname
docker run --rm --read-only parity sh -c 'touch /x'
docker run --rm --cap-drop all parity sh -c 'grep Cap /proc/self/status'
docker run --rm --privileged parity sh -c 'grep -e NoNewPrivs -e Seccomp: /proc/self/status'
docker run --rm --security-opt no-new-privileges parity grep NoNewPrivs /proc/self/status
docker run --rm --tmpfs /t:size=1m,mode=700 parity sh -c 'grep " /t " /proc/mounts | cut -d" " -f1-3'
docker run --rm --ulimit nofile=100:200 parity sh -c 'ulimit -Sn; ulimit -Hn'
docker run --rm --shm-size 1m parity sh -c 'df -k /dev/shm | tail -n 1 | tr -s " " | cut -d" " -f2'
docker run --rm --add-host some.host:192.0.2.9 parity grep some.host /etc/hosts
docker run --rm --network none parity sh -c 'ls /sys/class/net'
docker run --rm --entrypoint echo parity entry point
docker run --rm --sysctl net.ipv4.ip_forward=0 parity cat /proc/sys/net/ipv4/ip_forward
docker run --rm parity sh -c 'ls /dev; cat /proc/1/cmdline | tr "\0" " "'
docker run --rm --device /dev/zero:/dev/nought parity sh -c 'head -c 4 /dev/nought | wc -c'

# a container's life
docker run -d --name p-one --label x=y -e A=1 parity sh -c 'trap "echo usr1" USR1; echo one; sleep 0.2; echo two >&2; sleep 0.2; echo three; while :; do sleep 0.1; done' | wc -c; sleep 1
docker run --name p-one parity true
docker ps --filter name=p-one --format '{{.Names}} {{.Image}} {{.Command}} {{.State}} {{.Labels}} {{.Ports}}'
docker ps --filter label=x=y --filter status=running --format '{{.Names}}'
docker ps --filter status=exited --filter name=p- -q
docker ps --filter nosuch=1
docker ps --format '{{.Nosuch}}'
docker inspect -f '{{.Name}} {{.State.Status}} {{.State.Running}} {{.RestartCount}} {{.Path}} {{len .Args}} {{.Config.Image}}' p-one
docker inspect -f '{{json .Config.Cmd}} {{json .HostConfig.PortBindings}} {{index .Config.Labels "x"}}' p-one
docker inspect -f '{{.Nosuch}}' p-one
docker inspect p-nosuch
docker logs p-one
docker logs --tail 1 p-one
docker logs --tail 0 p-one
docker logs --since 2099-01-01 p-one
docker logs --until 2000-01-01 p-one
docker logs -t p-one 2>/dev/null | cut -c1-2,11,20,30-
docker logs p-nosuch
timeout -s INT 2 docker logs -f --tail 1 p-one 2>/dev/null
docker exec p-one echo inside
docker exec p-one sh -c 'exit 5'
docker exec p-one nosuch
docker exec p-one /etc
docker exec p-one /etc/passwd
docker exec -w /nosuch p-one true
docker exec -u nobody -w /tmp -e B=2 p-one sh -c 'id -un; pwd; echo $A$B'
echo piped | docker exec -i p-one cat
script -qec "docker exec -it p-one sh -c 'tty; test -t 0 && echo terminal; exit 6'" /dev/null </dev/null
docker exec -d p-one touch /detached; sleep 0.3; docker exec p-one ls /detached
docker exec p-nosuch true
docker top p-one -o pid,args | grep -c usr1
docker top p-nosuch
docker port p-one
docker kill -s USR1 p-one; sleep 0.5; docker logs --tail 1 p-one
docker kill -s NOSUCH p-one
docker kill p-nosuch
docker pause p-one
docker pause p-one
docker exec p-one true
docker ps --filter name=p-one --format '{{.State}}'
docker unpause p-one
docker unpause p-one
docker rename p-one p-two
docker rename p-two p-two
docker rename p-nosuch p-three
docker restart -t 0 p-two
docker inspect -f '{{.State.Status}}' p-two
docker rm p-two
docker stop -t 0 p-two
docker stop p-two
docker inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}' p-two
docker wait p-two
docker wait p-nosuch
docker exec p-two true
docker start p-two
docker kill p-two
docker start -a p-nosuch
docker rm -f p-two
docker rm p-two
docker rm -f p-two
docker create --name p-made parity sh -c 'cat; exit 4' | wc -c
docker inspect -f '{{.State.Status}} {{.State.Pid}}' p-made
docker attach p-made
docker start -a p-made
docker start -ai p-made </dev/null
docker rm p-made

# attach and detach
docker run -dit --name p-att parity sh | wc -c
script -qec "docker attach p-att" /dev/null < <(sleep 0.5; printf 'echo typed\n'; sleep 0.5; printf '\020\021'; sleep 0.3) | grep -c typed
docker inspect -f '{{.State.Running}}' p-att
docker rm -f p-att

# ports, by numbers that are given
docker run -d --name p-web -p 127.0.0.1:38217:80 -p 38218:81/udp --expose 99 parity sleep 1000 | wc -c
docker port p-web 80
docker port p-web 80/tcp
docker port p-web 1
docker inspect -f '{{json (index .NetworkSettings.Ports "80/tcp")}} {{json (index .NetworkSettings.Ports "99/tcp")}}' p-web
docker run --rm -p 127.0.0.1:38217:80 parity true 2>&1 | grep -o 'Bind for .*\|port is already allocated' | head -n 1
docker rm -f p-web

# restart policies
docker run -d --name p-fail --restart on-failure:2 parity false | wc -c; sleep 2; docker inspect -f '{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}' p-fail
docker rm -f p-fail

# events
T=$(date +%s); docker run --name p-ev parity true; sleep 1.2; docker events --since $T --until 0s --filter container=p-ev --format '{{.Type}} {{.Action}} {{index .Actor.Attributes "image"}}'
docker rm p-ev

# images
docker images --format '{{.Repository}}:{{.Tag}}' parity
docker images nosuch
docker images --format '{{.Nosuch}}'
docker history --format '{{.Nosuch}}' parity
docker images --format '{{.Nosuch'
docker tag parity p-other:v1
docker tag nosuch p-x
docker inspect -f '{{json .RepoTags}} {{.Os}} {{.Architecture}} {{json .Config.Cmd}}' p-other:v1
docker rmi p-other:v1
docker rmi nosuch
mkdir -p d && echo content >d/file && tar -cf d.tar -C d file && docker import -c 'CMD ["x"]' -m note d.tar p-imported:1 | wc -c
docker inspect -f '{{json .Config.Cmd}} {{.Comment}}' p-imported:1
docker rmi p-imported:1 | sed 's/:.*//'
echo garbage >bad.tar; docker load -i bad.tar >/dev/null 2>&1; test $? -ne 0 && echo refused
docker load -i nosuch.tar
docker load </dev/null 2>/dev/null
docker import nosuch.tar

# bad values of options
docker run --rm --pids-limit abc parity true
docker run --rm --ulimit nosuch=5 parity true
docker run --rm --tmpfs /x:nosuch parity true
docker run --rm -l =x parity true
docker run --rm --uts nosuch parity true
docker run --rm --userns nosuch parity true
docker run --rm --ipc nosuch parity true
docker run --rm --device /dev/nosuch parity true
docker run --rm --device /dev/null:/dev/x:zz parity true
docker run --rm --security-opt nosuch parity true
docker run --rm --security-opt seccomp=/nosuch parity true
docker run --rm --log-driver nosuch parity true
docker run --rm --log-opt nosuch=x parity true
docker run --rm --shm-size abc parity true
docker run --rm --runtime nosuch parity true
docker run --rm --platform nonsense/x/y/z parity true
docker run --rm --restart nosuch parity true
docker run --rm --stop-signal NOSUCH parity true
docker run --rm --add-host bad parity true
docker run --rm --entrypoint '' parity true
docker run --rm --cidfile /etc/passwd parity true
docker run --rm -w rel parity pwd
docker run --rm -v 'bad name:/x' parity true
docker run --rm --mount type=bind,dst=/x parity true
docker run --rm --memory 8m --memory-swap 7m parity true
docker ps -n abc
docker ps --filter status=nosuch
docker ps --filter nosuch=x
docker images --filter nosuch=1
docker import /nosuch
docker load -i /nosuch
docker load -i /etc/passwd
docker tag parity Bad
docker tag nosuch p-x
docker rmi nosuch

# exec, signals and names, wrongly
docker run -d --name p-bad parity sleep 1000
docker exec -w rel p-bad pwd
docker exec -w /nosuch p-bad pwd
docker exec -u nosuch p-bad id
docker exec p-bad /etc
docker logs --tail abc p-bad
docker logs --since nonsense p-bad
docker port p-bad abc
docker port p-bad 80
docker top p-bad -o pid,comm | tr -d ' 0-9'
docker top nosuch
docker stop -t abc p-bad
docker kill -s NOSUCH p-bad
docker kill -s 99 p-bad
docker rename p-bad p-bad
docker rename p-bad 'bad name'
docker inspect -f '{{.NoSuch}}' p-bad
docker inspect -f '{{.State.NoSuch' p-bad
docker inspect --type image p-bad
docker pause p-bad; docker pause p-bad; docker exec p-bad true; docker unpause p-bad; docker unpause p-bad
docker start nosuch p-bad
docker wait nosuch p-nosuch
docker rm p-bad
docker rm -f p-bad; docker rm -f p-bad; docker rm p-bad

# volumes
docker volume create p-vol
docker volume create p-vol
docker volume create -d nosuch p-vol2
docker volume create --opt foo=bar p-vol2
docker volume create --label a=b p-vol3
docker volume create 'bad name'
docker volume create a
docker volume create --opt type=none p-vol4
docker volume create | wc -c
docker volume ls -q -f name=p-vol
docker volume ls -f nosuch=1
docker volume ls -f label=a --format '{{.Name}} {{.Driver}} {{.Labels}} {{.Scope}} {{.Links}} {{.Size}} {{.Status}} {{.Availability}} {{.Group}}'
docker volume ls -f name=p-vol
docker volume ls -f name=p-vol --format 'table {{.Name}}\t{{.Driver}}'
docker volume ls --format '{{.Nosuch}}'
docker volume ls x
docker volume rm
docker volume inspect -f '{{.Name}} {{.Driver}} {{json .Labels}} {{json .Options}} {{.Scope}}' p-vol p-vol3
docker volume inspect nosuch
docker volume inspect -f '{{.Name}}' p-vol nosuch
docker inspect -f '{{.Name}}' p-vol
docker inspect --type volume nosuch
docker run --name p-holder -v p-vol:/x -v /anonymous parity sh -c 'echo kept >/x/file'
docker run --rm -v p-vol:/y:ro parity sh -c 'cat /y/file; echo >/y/other'
docker volume ls -q -f dangling=true -f name=p-vol
docker volume rm p-vol | tr -d '[:xdigit:]'
docker volume rm nosuch
docker volume rm -f nosuch
docker volume prune </dev/null
docker volume prune -f | wc -l
docker volume ls -q -f name=p-vol
docker rm -v p-holder
docker volume prune -af --filter label=q
docker volume prune -af --filter 'label!=a' | sort
docker volume ls -q -f name=p-vol
docker volume rm p-vol3 p-vol

# networks
docker network create p-net
docker network create p-net
docker network create bridge
docker network create --subnet 10.232.0.0/24 --ip-range 10.232.0.128/25 --gateway 10.232.0.254 --aux-address a=10.232.0.5 --label p=1 -o com.docker.network.driver.mtu=1400 p-net2
docker network ls --filter name=p-net --format '{{.Name}} {{.Driver}} {{.Scope}} {{.Labels}} {{.Internal}} {{.IPv6}}'
docker network ls --filter label=p --format '{{.Name}}'
docker network ls --filter foo=bar
docker network ls --filter type=builtin --format '{{.Name}}'
docker network ls --filter type=foo
docker network inspect -f '{{.Name}} {{.Driver}} {{.EnableIPv4}} {{.EnableIPv6}} {{.Internal}} {{.Attachable}} {{len .Containers}} {{.Labels}} {{.Options}}' p-net2
docker network inspect -f '{{range .IPAM.Config}}{{.Subnet}} {{.IPRange}} {{.Gateway}} {{.AuxiliaryAddresses}}{{end}} {{.IPAM.Driver}}' p-net2
docker network inspect p-nothere
docker network inspect -f '{{.Name}}' bridge p-nothere host
docker network create -d p-nope p-x
docker network create -d host p-x
docker network create -d overlay p-x
docker network create --subnet 10.232.0.0/25 p-x
docker network create --subnet 10.233.1.0/33 p-x
docker network create --subnet 10.233.1.5/24 p-x
docker network create --subnet 10.233.1.0/24 --gateway 10.234.2.1 p-x
docker network create --gateway 10.233.2.1 p-x
docker network create --subnet 10.233.1.0/24 --ip-range 10.8.1.0/25 p-x
docker network create --subnet 10.233.1.0/24 --subnet 10.233.2.0/24 p-x
docker network create --subnet 10.233.1.0/24 --aux-address a=1.2.3.4 p-x
docker network create -o com.docker.network.driver.mtu=abc p-x
docker network create -o com.docker.network.bridge.enable_icc=abc p-x
docker network create --ipv4=false p-x
docker network create --ipam-driver p-foo p-x
docker network create --ingress p-x
docker network create -d macvlan -o parent=p-nodev p-x
docker network create
docker run -d --name p-c1 --network p-net --network-alias p-al parity sleep 1000 >/dev/null
docker network connect --ip 10.232.0.130 --alias p-foo p-net2 p-c1
docker network connect p-net2 p-c1
docker network connect p-nothere p-c1
docker network connect p-net p-nothere
docker network connect host p-c1
docker inspect -f '{{range $name, $net := .NetworkSettings.Networks}}{{$name}} {{$net.Aliases}} {{$net.IPPrefixLen}} {{$net.GwPriority}} {{end}}' p-c1
docker inspect -f '{{with index .NetworkSettings.Networks "p-net2"}}{{.IPAddress}} {{.IPAMConfig.IPv4Address}} {{.Gateway}} {{.MacAddress | len}} {{.EndpointID | len}}{{end}} [{{.NetworkSettings.IPAddress}}]' p-c1
docker exec p-c1 sh -c 'nslookup p-c1.p-net2 | grep -c 10.232.0.130; nslookup p-al | grep -c ^Name; nslookup p-foo | grep "Address: 10.232"; cat /sys/class/net/eth1/mtu'
docker exec p-c1 nslookup 10.232.0.130 | grep name
docker exec p-c1 sh -c 'grep -v "^#" /etc/resolv.conf | grep -v "^$"'
docker network rm p-net2 2>&1 | sed 's/id:"[0-9a-f]*"/id/'
docker network rm p-nothere
docker network rm -f p-nothere
docker network rm bridge
docker network disconnect p-net p-c1
docker network disconnect p-net p-c1 2>&1 | sed 's/[0-9a-f]\{64\}/ID/'
docker network disconnect p-net p-nothere
docker network disconnect -f p-net p-nothere
docker exec p-c1 sh -c 'ip -o -4 address | wc -l; ip route | grep default'
docker ps --filter network=p-net2 --format '{{.Names}} {{.Networks}}'
docker rm -f p-c1
docker run --rm --network p-nothere parity true
docker run --rm --network p-net --ip 1.2.3.4 parity true
docker run --rm --network p-net2 --ip 1.2.3.4 parity true
docker run --rm --ip 1.2.3.4 parity true
docker run --rm --network-alias p-x parity true
docker run --rm --network host --network p-net parity true
docker run --rm --network p-net --network p-net parity true
docker run --rm --network p-net --mac-address 02:00:00:00:00:05 parity cat /sys/class/net/eth0/address
docker run --rm --network name=p-net2,ip=10.232.0.7,mac-address=02:00:00:00:00:07 parity sh -c 'ip -o -4 address show eth0 | grep -o 10.232.0.7/24; cat /sys/class/net/eth0/address'
docker run --rm --network name=p-net,foo=bar parity true
docker network rm p-net p-net2
docker network prune -f --filter label=p-none
docker network prune -f --filter foo=bar

# health checks
docker create --name p-h --health-cmd 'a b' --health-interval 5s --health-timeout 1500ms --health-start-period 2m --health-retries 9 parity
docker inspect -f '{{.Config.Healthcheck.Test}} {{json .Config.Healthcheck.Interval}} {{json .Config.Healthcheck.Timeout}} {{.Config.Healthcheck.Retries}}' p-h
docker rm p-h
docker run --rm --health-interval 5 parity true
docker run --rm --health-interval=-5s parity true
docker run --rm --no-healthcheck --health-cmd x parity true
docker run --rm --health-cmd x --health-timeout 1us parity true
docker run --rm --health-cmd x --health-retries=-1 parity true
docker run -d --name p-h --health-cmd 'echo out; exit 3' --health-interval 100ms --health-retries 1 parity sleep 100 >/dev/null
sleep 2; docker inspect -f '{{.State.Health.Status}} {{len .State.Health.Log}} {{with index .State.Health.Log 0}}{{.ExitCode}} {{.Output}}{{end}}' p-h
docker ps --filter health=unhealthy --filter name=p-h --format '{{.Names}} {{.State}}'
docker ps --filter health=bogus
docker rm -f p-h

# files
docker run -d --name p-f --user 33:44 parity sleep 1000 >/dev/null
docker exec -u 0 p-f sh -c 'mkdir -p /d/e; echo x >/d/f; ln -s /d /ld; ln -s /d/f /lf; ln -s /nowhere /dang'
mkdir -p p/d/sub; cd p; echo hello >f; echo a >d/a; echo b >d/sub/b; ln -s f link
cd p; docker cp f p-f:/d; docker cp f p-f:/d/new; docker cp d p-f:/dx; docker cp d p-f:/dx; docker cp d/. p-f:/dy; docker cp link p-f:/l; docker cp -L link p-f:/l2; docker cp f p-f:/dang; docker cp -a f p-f:/owned
docker exec p-f sh -c 'find /d /dx /dy | sort; readlink /l; cat /d/f /d/new /l2 /nowhere; stat -c %u:%g /owned'
cd p; docker cp f p-f:/nope/x
cd p; docker cp f p-f:/d/f/x
cd p; docker cp f p-f:new/ 2>&1 | grep -v level=error
cd p; docker cp d p-f:/d/f 2>&1 | grep -v level=error
cd p; docker cp missing-p p-f:/ 2>&1 | sed "s,$PWD,TMP,"
cd p; docker cp f p-nobody:/x
cd p; docker cp f p-f: 2>&1 | grep -v level=error
cd p; docker cp f f
docker cp p-f:/a p-f:/b
cd p; mkdir o; docker cp p-f:/d/f o; docker cp p-f:/d/f o/g; docker cp p-f:/d o; docker cp p-f:/d/. o/dd; docker cp p-f:/lf o; docker cp -L p-f:/lf o/lf2; docker cp p-f:/ld/ o/by; find o | sort; readlink o/lf; cat o/lf2
docker cp p-f:/missing "p/o"
docker cp p-f:/d "p/o/g"
docker cp p-f: "p/o"
docker cp p-f:/d/f/ "p/o"
docker cp p-f:/d/f "p/o/nope/x" 2>&1 | sed "s,$PWD,TMP,"
docker cp p-f:/d - | tar t | sort
docker cp p-f:/d/. - | tar t | sort
cd p; tar c f d | docker cp - p-f:/d/e; docker exec p-f sh -c 'find /d/e | sort'
docker cp - p-f:/nope </dev/null
echo garbage | docker cp - p-f:/d
docker create --name p-f2 --read-only parity >/dev/null; docker cp "p/f" p-f2:/x; docker rm p-f2
docker stop -t 0 p-f; docker cp "p/f" p-f:/d/late; docker cp p-f:/d/late - | tar t; docker export p-f | tar t | grep -E '^(\.dockerenv|d/late|dev/console|etc/hosts|proc/|d/)$' | sort
docker export -o nope/x p-f 2>&1 | sed "s,$PWD,TMP,"
docker export -o . p-f
docker rm p-f

# diff and commit
docker run --name p-d parity sh -c 'echo x >/new; rm /bin/wget; mkdir -p /q/w; chmod 700 /tmp'
docker diff p-d | sort
docker diff p-nobody
docker create --name p-d2 parity; docker diff p-d2; docker rm p-d2
docker commit -a me -m msg -c 'CMD ["echo","hi"]' -c 'ENV A=b' -c 'LABEL x=y' -c 'EXPOSE 80' -c 'WORKDIR /q' -c 'USER 5' -c 'STOPSIGNAL SIGINT' -c 'VOLUME /v' -c 'HEALTHCHECK --interval=5s CMD true' -c 'ONBUILD RUN x' p-d p-img:v1 | sed 's/[0-9a-f]\{64\}/ID/'
docker inspect -f '{{.Author}} {{.Comment}} {{.Config.Cmd}} {{.Config.Env}} {{.Config.Labels}} {{.Config.ExposedPorts}} {{.Config.WorkingDir}} {{.Config.User}} {{.Config.StopSignal}} {{.Config.Volumes}} {{.Config.Healthcheck.Test}} {{.Config.OnBuild}}' p-img:v1
docker run --rm p-img:v1
docker run --rm -u 0 p-img:v1 sh -c 'cat /new; test -e /bin/wget || echo gone; pwd; stat -c %a /tmp'
docker history --format '{{.CreatedBy}}|{{.Comment}}' p-img:v1 | head -1
docker commit -c 'SHELL ["x"]' p-d
docker commit -c 'FROM x' p-d
docker commit -c '' p-d
docker commit -c 'HEALTHCHECK FOO' p-d
docker commit p-nobody
docker commit p-d P-Bad
docker rm p-d; docker rmi p-img:v1 | sed 's/[0-9a-f]\{64\}/ID/' | head -1

# update and stats
docker run -d --name p-u -m 100m parity sleep 1000 >/dev/null
docker update --cpus 0.5 --pids-limit 20 --restart always p-u
docker inspect -f '{{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Memory}}' p-u
docker update -m 500m p-u 2>&1 | sed 's/[0-9a-f]\{64\}/ID/'
docker update -m 50m --memory-swap 60m p-u
docker update -m 1m p-u
docker update p-u
docker update --cpu-period 2000 p-u 2>&1 | sed 's/[0-9a-f]\{64\}/ID/'
docker update --cpus 99 p-u
docker update --restart bogus p-u
docker update --restart on-failure:x p-u
docker update --restart no p-u p-nobody
docker stats --no-stream --format '{{.Name}} {{.MemUsage}} {{.PIDs}}' p-u | sed 's,[0-9.]*[KM]iB /,N /,'
docker stats --no-stream p-nobody
docker stats --no-stream --format '{{.Bogus}}' p-u
docker rm -f p-u
docker create --name p-u --rm parity >/dev/null; docker update --restart always p-u 2>&1 | sed 's/[0-9a-f]\{64\}/ID/'; docker rm p-u

# prune
docker create --name p-p --label p-prune=1 parity >/dev/null; docker container prune -f --filter label=p-prune=1 | sed 's/[0-9a-f]\{64\}/ID/'
docker container prune -f --filter label=p-prune=1
docker container prune -f --filter foo=bar
docker container prune -f --filter until=bogus
echo n | docker container prune
echo n | docker image prune -a
echo n | docker network prune
echo n | docker system prune --filter label=p-x --filter until=1h
docker system prune -f --volumes --filter until=1h
docker image prune -f --filter label=p-none
docker system df --format '{{.Type}}'
docker system df -v --format '{{.Size}}'

# links
docker run -d --name p-target -e FOO=bar --expose 80 parity sleep 1000
docker run -d --name p-linked --link p-target:db --link p-target parity sleep 1000
docker inspect -f '{{json .HostConfig.Links}}' p-linked
docker exec p-linked sh -c 'echo $DB_NAME $DB_ENV_FOO $DB_PORT_80_TCP_PROTO'
docker exec p-linked sh -c 'grep -c p-target /etc/hosts'
docker run --rm --link p-nosuch:x parity true
docker run --rm --network host --link p-target:x parity true
docker create --link p-target:x:y parity
docker create --link '' parity
docker ps --no-trunc --format '{{.Names}}' -f name=p-target
docker ps --format '{{.Names}}' -f name=p-target
docker rm --link p-linked/db
docker rm --link p-linked
docker rm --link p-linked/nosuch
docker inspect -f '{{json .HostConfig.Links}}' p-linked
docker inspect -f '{{.Name}}' p-linked/p-target
docker stop -t 0 p-target
docker restart -t 0 p-linked
docker rm -f p-linked p-target

# parts of volumes, images as mounts
docker run --rm --mount type=volume,src=p-sub,dst=/d,volume-subpath=../x parity true
docker run --rm --mount type=volume,src=p-sub,dst=/d,volume-subpath=/x parity true
docker run --rm -v p-sub:/v parity sh -c 'mkdir /v/a; echo in >/v/a/f'
docker run --rm --mount type=volume,src=p-sub,dst=/d,volume-subpath=a,ro parity cat /d/f
docker volume rm p-sub
docker run --rm --mount type=image,source=parity,target=/x parity ls /x/bin/sh
docker run --rm --mount type=image,source=parity,target=/x parity touch /x/y
docker run --rm --mount type=image,source=parity,target=/x,image-subpath=bin parity ls /x/sh
docker run --rm --mount type=image,source=parity,target=/x,volume-subpath=bin parity ls /x/sh

# a file of a container's files
docker create --name p-export parity true
docker export -o p-export.tar p-export && tar tf p-export.tar bin/sh
docker rm p-export

# run: options with little effect here
docker run --rm --gpus all parity true
docker run --rm --gpus device=x,bogus=1 parity true
docker run --rm --gpus '"device=1,2","capabilities=utility"' parity true
docker run --rm --gpus x parity true
docker run --rm --storage-opt size=1g parity true
docker run --rm --isolation hyperv parity true
docker run --rm --isolation default parity echo hi
docker run --rm --kernel-memory 10m parity echo hi
docker run --rm --kernel-memory abc parity true
docker run --rm --blkio-weight-device /dev/null:100 parity echo hi
docker run --rm --blkio-weight-device x parity true
docker run --rm --blkio-weight-device x:1 parity true
docker run --rm --blkio-weight-device /dev/null:5 parity true
docker run --rm --disable-content-trust parity echo hi
docker update -m abc p-one
