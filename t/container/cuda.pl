#!/usr/bin/perl

# docker/Dockerfile.cuda without Docker, without NVIDIA's repository, and without
# a card, on a host that has nvcc: packages with the names and places of
# NVIDIA's stand in for them, of links to this host's files.  So it is built, has
# the packages that it takes to run, by their names, and nothing is missing but
# the driver.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/../lib";

use SD;
use SD::Container;

my $cuda = '/usr/local/cuda';

plan(skip_all => 'needs root') unless $> == 0;
plan(skip_all => 'no CUDA Toolkit with cuDNN')
    unless -x "$cuda/bin/nvcc" && glob "$cuda/lib64/libcudnn.so.*";

my $work = "$SD::BUILD/container";
my $debs = "$work/debs";

system("rm -rf $debs && mkdir -p $debs") == 0 or die;


# a package of links into /host, and of a file

sub package_of {
    my ($name, %o) = @_;

    my $dir = "$debs/$name";
    my %files = %{$o{files} // {}};
    my %links = %{$o{links} // {}};

    $files{'DEBIAN/control'} = "Package: $name\nVersion: 13.0\n"
        . 'Architecture: ' . ($o{all} ? 'all' : 'amd64') . "\n"
        . "Maintainer: nobody <nobody\@example.com>\n"
        . ($o{depends} ? "Depends: $o{depends}\n" : '')
        . "Description: stands in\n";
    $files{'DEBIAN/triggers'} = "activate-noawait ldconfig\n";

    for (keys %files, keys %links) {
        my $parent = "$dir/$_" =~ s{/[^/]*$}{}r;
        system("mkdir -p $parent") == 0 or die;
    }

    for (keys %files) {
        open my $f, '>', "$dir/$_" or die "$_: $!";
        print $f $files{$_};
        close $f;
    }

    symlink $links{$_}, "$dir/$_" or die "$_: $!" for keys %links;

    system("chmod -R go=u,go-w $dir && dpkg-deb -b $dir $debs >/dev/null") == 0
        or die "dpkg-deb $name\n";
}

sub libraries {
    my ($to, $pattern) = @_;

    return map { m{([^/]+)$} ? ("$to/$1" => "/host/lib64/$1") : () }
           glob "$cuda/lib64/$pattern";
}

my $lib = 'usr/local/cuda-13.0/targets/x86_64-linux/lib';

package_of('cuda-keyring', all => 1, files => {
    'etc/apt/sources.list.d/cuda.list' => "deb [trusted=yes] file:/debs ./\n" });
package_of('cuda-nvcc-13-0', links => { 'usr/local/cuda' => '/host' });
package_of('cuda-cudart-dev-13-0');
package_of('libcublas-dev-13-0', depends => 'libcublas-13-0');
package_of('libcudnn9-dev-cuda-13', depends => 'libcudnn9-cuda-13');
package_of('libcublas-13-0', links => { libraries($lib, 'libcublas*.so.13') },
    files => { 'etc/ld.so.conf.d/000_cuda.conf' => "/$lib\n" });
package_of('cuda-nvrtc-13-0', links => { libraries($lib, 'libnvrtc*.so.13') });
package_of('libcudnn9-cuda-13', links => {
    libraries('usr/lib/x86_64-linux-gnu', 'libcudnn*.so.9') });

system("cd $debs && dpkg-scanpackages . >Packages 2>/dev/null") == 0
    or die "dpkg-scanpackages\n";

my ($keyring) = glob "$debs/cuda-keyring_*.deb";


my $c = SD::Container->new('docker/Dockerfile.cuda');

$c->{binds} = { '/host' => $cuda, '/debs' => $debs };
$c->{arg} = { CUDA_ARCHS => '90a' };
$c->{files} = { 'cuda-keyring_1.1-1_all.deb' => $keyring };

$c->build($work);
pass('built');

my $root = $c->{root};

ok(-e "$root/usr/lib/nginx/modules/sd_cuda.so", 'sd_cuda.so');
ok(!-e "$root/usr/local/cuda", 'without nvcc');

my %needs = map { $_ => 1 }
            split /\n/, slurp("$root/usr/local/share/sd/packages");
ok($needs{$_}, "it needs $_")
    for qw/ nginx libcublas-13-0 libcudnn9-cuda-13 libturbojpeg0 /;


# nothing is missing but the driver, and nginx lives without

SKIP: {
    skip 'a card is here', 6 if -e '/dev/nvidiactl';

    my $t = SD->new(conf => '');
    my %env = (PORT => $t->port('PORT'), OPS_PORT => $t->port('PORT1'));

    my $pid = $c->run(\%env);

    ok((wait_for { slurp($c->{output}) =~ /there is no NVIDIA driver/ }),
       'no driver') or diag slurp($c->{output});
    ok((wait_for {
            my $r = eval { $t->request('GET', '/livez',
                                       port => $t->port('PORT1')) };
            $r && $r->status() == 200;
        }), 'it lives');
    isnt($c->healthy(%env), 0, 'but is not ready');

    kill 'TERM', $pid;
    is($c->ended(), 0, 'TERM');

    $pid = $c->run({ %env, SD_DEVICE => 'auto' });
    ok((wait_for { $c->healthy(%env) == 0 }), 'auto: the cpu computes')
        or diag slurp($c->{output});

    kill 'TERM', $pid;
    is($c->ended(), 0, 'TERM');
}

done_testing();
