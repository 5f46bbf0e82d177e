# make help tells what there is

BUILD     ?= build
CC        ?= gcc
OPT       ?= -O2 -g
WARN      := -Wall -Wextra -Werror -Wno-unused-parameter \
             -Wpointer-arith -Wstrict-prototypes -Wvla
CFLAGS    += -std=gnu11 $(OPT) -fPIC -pthread -ffp-contract=off $(WARN)
LDLIBS    += -lturbojpeg -lpng -lcjson -lpcre2-8 -lutf8proc -lm -pthread

# libsd.a: everything but the command and nginx's side
DIRS      := src/io src/ops src/ops/cpu src/sd src/engine src/http
SRCS      := $(foreach d,$(DIRS),$(sort $(wildcard $d/*.c)))
OBJS      := $(SRCS:%.c=$(BUILD)/%.o)
CLI       := $(sort $(wildcard src/cli/*.c))
UNITS     := $(sort $(wildcard t/unit/*.c))
TESTS     := $(UNITS:%.c=$(BUILD)/%)

.PHONY: all
all: $(BUILD)/sd

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/libsd.a: $(OBJS)
	rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/sd: $(CLI:%.c=$(BUILD)/%.o) $(BUILD)/libsd.a
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/t/unit/%: $(BUILD)/t/unit/%.o $(BUILD)/libsd.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

.PHONY: units
units: $(TESTS)

.PRECIOUS: $(BUILD)/t/unit/%.o
-include $(OBJS:.o=.d) $(CLI:%.c=$(BUILD)/%.d) $(UNITS:%.c=$(BUILD)/%.d)
