# Makes the images that the other tasks pull and load: four, one above the other, in a registry's directory and in an archive. Each
# can tell whether it is whole: /check compares all its files with sums that came with them.
engine="dhow --data-root /prepared/data --exec-root /run/prepared"
mkdir -p /prepared/context/bin && cd /prepared/context
cp /bin/busybox bin/
for applet in sh md5sum cat head seq mkdir sleep; do ln -s busybox bin/$applet; done
cat >check <<'END'
#!/bin/sh
for sums in /sums-*; do md5sum -c -s $sums || exit 1; done
END
# Makes files, of a size each, and what their sums are.
cat >make <<'END'
#!/bin/sh
mkdir -p /$1
for number in $(seq $2); do head -c $((number * 199 % 9000)) /dev/urandom >/$1/$number; done
md5sum /$1/* >/sums-$1
END
chmod 755 check make
echo 'FROM scratch
COPY . /' >Dockerfile
$engine build -q --network none -t base . || exit
below=base
dhow registry serve --data /prepared/registry >/dev/null 2>&1 &
for number in 1 2 3 4; do
  echo "FROM $below
RUN /make image$number 120" >Dockerfile
  below=127.0.0.1:5000/image:$number
  $engine build -q --network none -t $below . || exit
  $engine push -q $below || exit
done
$engine tag $below loaded && $engine save -o /prepared/archive.tar loaded || exit
rm -r /prepared/data
sync
echo "prepared"
