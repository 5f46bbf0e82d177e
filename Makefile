# make help tells what there is

SHELL     := /bin/bash
BUILD     ?= build
CC        ?= gcc
OPT       ?= -O2 -g
WARN      := -Wall -Wextra -Werror -Wno-unused-parameter \
             -Wpointer-arith -Wstrict-prototypes -Wvla
CFLAGS    += -std=gnu11 $(OPT) -fPIC -fvisibility=hidden -pthread \
             -ffp-contract=off $(WARN)
LDLIBS    += -lturbojpeg -lpng -lcjson -lutf8proc -lm -ldl -pthread

# where Debian's nginx-dev keeps what a module needs
NGINX     ?= /usr/sbin/nginx
NGINX_SRC ?= /usr/share/nginx/src

# where make install puts things, below DESTDIR
NGINX_MODULES ?= /usr/lib/nginx/modules
PREFIX    ?= /usr/local

PORT      ?= 8080
T         ?= t/*.t

# SANITIZE=address, SANITIZE=thread: everything in a directory of its own
ifdef SANITIZE
override BUILD := $(BUILD)/$(SANITIZE)
SAN_address    := -fsanitize=address,undefined -fno-sanitize-recover=all
SAN_thread     := -fsanitize=thread
CFLAGS    += $(SAN_$(SANITIZE)) -fno-omit-frame-pointer -Wno-format-truncation
LDFLAGS   += $(SAN_$(SANITIZE))
endif

# to build and run; the tests need more: a browser, and python to drive it
PKGS      := build-essential nginx nginx-dev libturbojpeg0-dev libcjson-dev \
             libpcre2-dev libutf8proc-dev libpng-dev perl curl
TEST_PKGS := chromium nodejs fonts-dejavu-core python3-venv python3-yaml openssl \
             ca-certificates prometheus

# libsd.a: everything but the command and nginx's side
DIRS      := src/io src/ops src/ops/cpu src/sd src/engine src/http
SRCS      := $(foreach d,$(DIRS),$(sort $(wildcard $d/*.c)))
OBJS      := $(SRCS:%.c=$(BUILD)/%.o)

# the cpu's kernels, once an instruction set; cpu.c chooses at run time
ISA_SRCS  := $(sort $(wildcard src/ops/cpu/isa/*.c))
ISAS      := baseline
ifeq ($(shell uname -m),x86_64)
ISAS      += avx2 avx512
endif
ISA_avx2   := -DSD_AVX2 -mavx2 -mfma
ISA_avx512 := -DSD_AVX512 -mavx2 -mfma -mavx512f -mavx512bw -mavx512dq \
              -mavx512vl -mprefer-vector-width=512
ISA_OBJS  := $(foreach i,$(ISAS),\
                 $(ISA_SRCS:src/ops/cpu/isa/%.c=$(BUILD)/src/ops/cpu/isa/$i/%.o))

# bf16's tasks, on AVX512_BF16 with or without AMX
ifeq ($(shell uname -m),x86_64)
ISA_bf16  := $(ISA_avx512) -mavx512bf16 -mamx-tile -mamx-bf16
ISA_OBJS  += $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard src/ops/cpu/bf16/*.c)))
endif
OBJS      += $(ISA_OBJS)

# tsan takes 45 times as long with all: it sees the baseline, whose tasks and
# tiles are those of the others, in t/unit/ops and t/unit/picture
ifeq ($(SANITIZE),thread)
ISA_avx2   += -fno-sanitize=thread
ISA_avx512 += -fno-sanitize=thread
endif

CLI       := $(sort $(wildcard src/cli/*.c))
UNITS     := $(sort $(wildcard t/unit/*.c))
# one thread, whose many fibers overflow tsan
UNITS_CXX := $(sort $(wildcard t/unit/*.cpp))
TESTS     := $(UNITS:%.c=$(BUILD)/%) \
             $(if $(filter thread,$(SANITIZE)),,$(UNITS_CXX:%.cpp=$(BUILD)/%))
FUZZ      := $(sort $(wildcard t/fuzz/*.c))
FUZZERS   := $(FUZZ:%.c=$(BUILD)/%)
FUZZ_TIME ?= 60


.PHONY: all
all: $(BUILD)/ngx_http_sd_module.so $(if $(CLI),$(BUILD)/sd)


.PHONY: help
help:
	@echo 'make           build/ngx_http_sd_module.so and build/sd'
	@echo 'make deps      install what is missing from Debian (root or sudo)'
	@echo 'make demo      build, start nginx on 127.0.0.1:$(PORT), paint a picture'
	@echo '               PORT=8081 for another port'
	@echo 'make stop      end the nginx that make demo left running'
	@echo 'make test      every test; T=t/reload.t for one,'
	@echo '               T=build/t/unit/buf for a unit'
	@echo 'make units     build the unit tests only'
	@echo 'make cuda      build/sd_cuda.so, for NVIDIA GPUs, by nvcc;'
	@echo '               CUDA_ARCHS=90a for one kind of chip'
	@echo 'make gpu-test  every test that needs a GPU, on a machine that has one;'
	@echo '               make gpu-sanitize: its kernels in compute-sanitizer'
	@echo 'make bench     measure this machine, write bench/RESULTS.md'
	@echo 'make bench-gpu measure its GPU'
	@echo 'make bench-load  many clients against one at a time; 10 minutes'
	@echo 'make golden    remake the reference numbers (torch, diffusers)'
	@echo 'make valgrind  a demo under valgrind: no error, no leak; minutes'
	@echo 'make container-test  the images without Docker, as root; minutes'
	@echo 'make soak      hostile clients and reloads for SOAK_TIME=600 seconds'
	@echo 'make fuzz      FUZZ_TIME=60 seconds a parser, with clang'
	@echo 'make install   the module into $(NGINX_MODULES), sd, the model and'
	@echo '               the page into $(PREFIX)'
	@echo 'make clean     remove $(BUILD)/'
	@echo
	@echo 'SANITIZE=address or SANITIZE=thread builds in build/address,'
	@echo 'build/thread; BUILD=dir builds elsewhere.'


# objects, library, command

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# where the cuda backend is looked for, if it is not beside the file that asks
$(BUILD)/src/ops/cuda.o: CPPFLAGS += -DSD_CUDA_DIR='"$(NGINX_MODULES)"'

define isa_rule
$$(BUILD)/src/ops/cpu/isa/$1/%.o: src/ops/cpu/isa/%.c
	@mkdir -p $$(@D)
	$$(CC) $$(CPPFLAGS) $$(CFLAGS) $$(ISA_$1) -MMD -MP -c -o $$@ $$<
endef

$(foreach i,$(ISAS),$(eval $(call isa_rule,$i)))

$(BUILD)/src/ops/cpu/bf16/%.o: CFLAGS += $(ISA_bf16)

$(BUILD)/libsd.a: $(OBJS)
	rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/sd: $(CLI:%.c=$(BUILD)/%.o) $(BUILD)/libsd.a
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# not $(BUILD)/libsd.a by name, so that nginx's own build can ask for it
.PHONY: lib
lib: $(BUILD)/libsd.a


# cuda: only nvcc's users need it; make CUDA_ARCHS=90a builds for one chip.
# A spill or local memory is an error, and so are wgmmas that ptxas puts one
# after the other, of which it only informs (C7517, C7519).

NVCC       ?= $(or $(shell command -v nvcc 2>/dev/null),\
                  $(wildcard /usr/local/cuda/bin/nvcc),nvcc)
CUDA_ARCHS ?= 80 86 89 90a 90-ptx
CUDA_SRCS  := $(sort $(wildcard cuda/*.cu))
CUDA_OBJS  := $(CUDA_SRCS:%.cu=$(BUILD)/%.o)
NVFLAGS    += -O3 -std=c++17 -Xcompiler=-fPIC,-fvisibility=hidden \
              -Xptxas=-warn-spills,-warn-lmem-usage,-Werror \
              $(foreach a,$(filter-out %-ptx,$(CUDA_ARCHS)),\
                  -gencode=arch=compute_$a,code=sm_$a) \
              $(foreach a,$(patsubst %-ptx,%,$(filter %-ptx,$(CUDA_ARCHS))),\
                  -gencode=arch=compute_$a,code=compute_$a)

# the bytes of the cpu backend, which has no FMA there
$(BUILD)/cuda/sampler.o $(BUILD)/cuda/picture.o: NVFLAGS += -fmad=false

$(BUILD)/cuda/%.o: cuda/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $< > $@.log 2>&1 \
	    || { cat $@.log; exit 1; }
	@cat $@.log
	@if grep -E 'C75(17|19)' $@.log; then rm -f $@; exit 1; fi

# the backend, beside the files that load it; what it shares with libsd.a knows
# no backend
CUDA_HOME  ?= $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_HOST  := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard cuda/*.c)) \
                 src/ops/arena.c src/ops/cuda_scratch.c src/io/error.c \
                 src/io/utf8.c)
CUDA_LIBS  := -L$(CUDA_HOME)/lib64 -lcublasLt -lcudnn -lcudart_static -ldl \
              -lrt -lm -lstdc++ -pthread

$(BUILD)/cuda/%.o: CPPFLAGS += -isystem $(CUDA_HOME)/include

$(BUILD)/sd_cuda.so: $(CUDA_OBJS) $(CUDA_HOST)
	$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,--no-undefined -o $@.new $^ \
	    $(CUDA_LIBS) && mv -f $@.new $@

.PHONY: cuda
cuda: $(BUILD)/sd_cuda.so

# cuDNN makes plans without a GPU, where it is installed; its own leaks are not
# for the sanitizers
CUDNN      := $(wildcard $(CUDA_HOME)/include/cudnn_backend.h)
ifndef SANITIZE
TESTS      += $(if $(CUDNN),$(BUILD)/t/unit/cuda_plans)
endif

$(BUILD)/t/unit/cuda/%.o: CPPFLAGS += -isystem $(CUDA_HOME)/include

$(BUILD)/t/unit/cuda_plans: $(BUILD)/t/unit/cuda/plans.o \
        $(BUILD)/cuda/conv_graph.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -L$(CUDA_HOME)/lib64 \
	    -Wl,-rpath,$(CUDA_HOME)/lib64 -lcudnn

-include $(CUDA_OBJS:.o=.d) $(CUDA_HOST:.o=.d)

# programs that check and time it on a GPU; they want nvcc and gcc, cuDNN, and
# nothing else, but for batch, which is of whole models
GPU_TESTS  := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard t/gpu/*.c)))

$(BUILD)/t/gpu/%.o: CPPFLAGS += -isystem $(CUDA_HOME)/include \
                                -DTAP_PATIENCE=3600

$(BUILD)/t/gpu/%: $(BUILD)/t/gpu/%.o $(CUDA_OBJS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $^ $(CUDA_LIBS)

-include $(GPU_TESTS:%=%.d)

# the operations alone: no library but CUDA's own; the backend is loaded from
# beside the program
OPS_OBJS   := $(patsubst %.c,$(BUILD)/%.o,$(wildcard src/ops/*.c) \
                 $(wildcard src/ops/cpu/*.c) src/io/error.c src/io/utf8.c) \
              $(ISA_OBJS)

$(BUILD)/t/gpu/ops: $(BUILD)/t/gpu/ops.o $(OPS_OBJS) | $(BUILD)/sd_cuda.so
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $^ -ldl -lm -pthread
	ln -sf ../../sd_cuda.so $(@D)/sd_cuda.so

$(BUILD)/t/gpu/batch: $(BUILD)/t/gpu/batch.o $(BUILD)/libsd.a \
        | $(BUILD)/sd_cuda.so
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)
	ln -sf ../../sd_cuda.so $(@D)/sd_cuda.so

# a bare machine with a GPU will do: see t/gpu/run
.PHONY: gpu-test gpu-sanitize
gpu-test gpu-sanitize:
	BUILD=$(BUILD) NVCC=$(NVCC) MAKE='$(MAKE)' t/gpu/run $@

# what the device did, for bench/kernels.py
$(BUILD)/bench/trace.so: bench/trace.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -isystem $(CUDA_HOME)/include -shared -o $@ $< \
	    -L$(CUDA_HOME)/lib64 -lcupti

.PHONY: bench-gpu
bench-gpu: $(BUILD)/bench/trace.so
	SD_BUILD=$(BUILD) bench/gpu --write


# the module, by nginx's own configure; SD_LIB says that libsd.a is there

NGX_OBJS  := $(abspath $(BUILD))/nginx

$(BUILD)/nginx/Makefile: config config.make Makefile
	@test -f $(NGINX_SRC)/conf_flags \
	    || { echo '$(NGINX_SRC) is missing: run "make deps"'; exit 1; }
	@mkdir -p $(@D)
	cd $(NGINX_SRC) && . ./conf_flags \
	    && SD_LIB=$(abspath $(BUILD))/libsd.a ./configure \
	       --with-cc-opt='$(OPT) -fPIC $(SAN_$(SANITIZE))' \
	       --with-ld-opt='$(SAN_$(SANITIZE))' "$${NGX_CONF_FLAGS[@]}" \
	       --builddir=$(NGX_OBJS) --add-dynamic-module=$(CURDIR) \
	       > $(NGX_OBJS)/configure.log \
	    || { tail -5 $(NGX_OBJS)/configure.log; exit 1; }
	@touch $@

# moved into place: a running nginx keeps the file that it has mapped
$(BUILD)/ngx_http_sd_module.so: $(BUILD)/nginx/Makefile $(BUILD)/libsd.a \
        $(wildcard ngx_http_sd*) $(wildcard src/*/*.h)
	env -u CFLAGS $(MAKE) -f $(NGX_OBJS)/Makefile -C $(NGINX_SRC) modules
	cp $(NGX_OBJS)/ngx_http_sd_module.so $@.new && mv -f $@.new $@


# tests

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libsd.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# a program of its own: it asks a server
$(BUILD)/bench/load: $(BUILD)/bench/load.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lm

$(BUILD)/t/unit/%: $(BUILD)/t/unit/%.o $(BUILD)/libsd.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# kernels as C++ for the host; t/unit/cuda has what plays the device
CXXFLAGS  += -std=gnu++17 $(OPT) -fno-strict-aliasing -ffp-contract=off \
             -Wall -Wextra \
             -Werror -Wno-unused-parameter -Wno-unknown-pragmas \
             -Wno-unused-function -Wno-missing-field-initializers \
             $(SAN_$(SANITIZE)) $(if $(SANITIZE),-fno-omit-frame-pointer)

$(BUILD)/t/unit/%: t/unit/%.cpp
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) -DSD_CUDA_HOST -It/unit/cuda $(CXXFLAGS) $(LDFLAGS) \
	    -MMD -MP -o $@ $<

.PHONY: units
units: $(TESTS)

# SANITIZE: the module alone is sanitized, in Debian's nginx; see t/lib/SD.pm
.PHONY: test
test:
	@$(MAKE) --no-print-directory deps PKGS='$(PKGS) $(TEST_PKGS)'
	@$(MAKE) --no-print-directory -j$$(nproc) all units \
	    $(BUILD)/bench/load $(if $(SANITIZE),,$(if $(CUDNN),cuda))
	SD_BUILD=$(BUILD) SD_SANITIZED=$(SANITIZE) prove -It/lib \
	    $(if $(filter command line,$(origin T)),$(T),$(TESTS) $(T))

# not part of make test: it takes minutes
.PHONY: valgrind
valgrind:
	@$(MAKE) --no-print-directory deps PKGS='$(PKGS) valgrind'
	@$(MAKE) --no-print-directory -j$$(nproc) all
	SD_BUILD=$(BUILD) prove -It/lib t/valgrind/run.pl

# the images, without Docker: built and run below build/container, as root
.PHONY: container-test
container-test:
	@$(MAKE) --no-print-directory deps PKGS='$(PKGS) debootstrap'
	SD_BUILD=$(BUILD) prove -v -It/lib t/container/run.pl t/container/cuda.pl

# every weather for SOAK_TIME seconds; the table goes into bench/RESULTS.md
SOAK_TIME ?= 600

.PHONY: soak
soak: all
	SD_BUILD=$(BUILD) SOAK_TIME=$(SOAK_TIME) perl t/soak/run.pl --write

FUZZ_OBJS := $(SRCS:%.c=$(BUILD)/fuzz/%.o)
FUZZ_CC   := clang -std=gnu11 -O1 -g -pthread -ffp-contract=off

$(BUILD)/fuzz/%.o: %.c
	@mkdir -p $(@D)
	$(FUZZ_CC) $(CPPFLAGS) -fsanitize=fuzzer-no-link,address,undefined \
	    -fno-sanitize-recover=all \
	    -MMD -MP -c -o $@ $<

# an archive, so that a fuzzer may have a model of its own
$(BUILD)/fuzz/libsd.a: $(FUZZ_OBJS) $(ISA_OBJS)
	rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/t/fuzz/%: t/fuzz/%.c $(BUILD)/fuzz/libsd.a
	@mkdir -p $(@D)
	$(FUZZ_CC) $(CPPFLAGS) -fsanitize=fuzzer,address,undefined -o $@ $^ \
	    $(LDLIBS)

-include $(FUZZ_OBJS:.o=.d)

.PHONY: fuzz
fuzz: $(FUZZERS)
	perl t/fuzz/seeds.pl $(BUILD)/t/fuzz
	for f in $(FUZZERS); do \
	    mkdir -p $$f.corpus && $$f -max_total_time=$(FUZZ_TIME) \
	        -artifact_prefix=$$f. $$f.corpus || exit 1; \
	done


# reference numbers and measurements want python packages from PyPI

VENV := $(BUILD)/venv

$(VENV)/golden: t/golden/requirements.txt
	test -x $(VENV)/bin/pip || python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q -r $<
	touch $@

.PHONY: golden
golden: $(VENV)/golden
	$(VENV)/bin/python t/golden/make.py
	$(VENV)/bin/python t/golden/samplers.py t/golden/samplers.json
	$(VENV)/bin/python t/golden/tokenizer.py model/tokenizer \
	    t/golden/tokenizer.txt

.PHONY: bench
bench: all $(BUILD)/bench/ops
	bench/run


.PHONY: bench-load
bench-load: all $(BUILD)/bench/load
	bench/load


# the demo

.PHONY: demo
demo:
	@SD_START=$$(date +%s) && export SD_START \
	&& $(MAKE) --no-print-directory deps \
	&& conf/demo prepare $(BUILD) $(PORT) \
	&& $(MAKE) --no-print-directory -j$$(nproc) all \
	&& conf/demo start $(BUILD) $(PORT) $(NGINX) \
	&& perl -It/lib t/demo.pl http://127.0.0.1:$(PORT) $(BUILD)/demo

.PHONY: stop
stop:
	@conf/demo stop $(BUILD)


# what a fresh Debian lacks; nginx must not start as a service on port 80,
# which policy-rc.d forbids while we install

.PHONY: deps
deps:
	@missing=; for p in $(PKGS); do \
	    dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null \
	        | grep -qx installed || missing="$$missing $$p"; \
	done; \
	test -z "$$missing" && exit 0; \
	echo "installing$$missing"; \
	if test $$(id -u) = 0; then sudo=; \
	elif command -v sudo >/dev/null; then sudo=sudo; \
	else echo 'needs root: run "make deps" as root once'; exit 1; fi; \
	rc=/usr/sbin/policy-rc.d; \
	if test ! -e $$rc; then \
	    printf '#!/bin/sh\nexit 101\n' | $$sudo tee $$rc >/dev/null; \
	    $$sudo chmod 755 $$rc; \
	    trap "$$sudo rm -f $$rc" EXIT; \
	fi; \
	apt="$$sudo env DEBIAN_FRONTEND=noninteractive apt-get -y -q \
	     -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120"; \
	$$apt update >/dev/null; \
	$$apt install --no-install-recommends $$missing >/dev/null \
	    || { echo "apt-get could not install$$missing"; exit 1; }


# a file that is in use is replaced, and never written to

.PHONY: install
install: all
	@put() { \
	    echo "$(DESTDIR)$$3"; \
	    install -D -m $$1 $$2 "$(DESTDIR)$$3.new" \
	    && mv -f "$(DESTDIR)$$3.new" "$(DESTDIR)$$3"; \
	}; \
	set -e; \
	put 644 $(BUILD)/ngx_http_sd_module.so \
	    $(NGINX_MODULES)/ngx_http_sd_module.so; \
	test ! -f $(BUILD)/sd_cuda.so \
	    || put 644 $(BUILD)/sd_cuda.so $(NGINX_MODULES)/sd_cuda.so; \
	put 755 $(BUILD)/sd $(PREFIX)/bin/sd; \
	for f in $$(find model html conf/errors.conf conf/log.conf \
	                conf/examples conf/monitoring \
	                -name train -prune -o -type f -print); \
	do \
	    put 644 $$f $(PREFIX)/share/sd/$$f; \
	done

.PHONY: clean
clean:
	rm -rf $(BUILD)


.PRECIOUS: $(BUILD)/%.o
-include $(OBJS:.o=.d) $(CLI:%.c=$(BUILD)/%.d) $(UNITS:%.c=$(BUILD)/%.d) \
         $(UNITS_CXX:%.cpp=$(BUILD)/%.d)
