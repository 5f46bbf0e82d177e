/*
 * Noise: torch's numbers, its own logarithm and sine, and that it is normal.
 */

#define _GNU_SOURCE

#include <math.h>
#include <stdint.h>

#include "../../src/ops/philox.h"
#include "tap.h"


static void
test_philox(void)
{
    int     i, close;
    double  sum, square, v;

    /* torch.manual_seed(0); torch.randn(12, device="cuda") */
    static const float  torch[] = {
        -0.9247f, -0.4253f, -2.6438f, 0.1452f, -0.1209f, -0.5797f
    };

    close = 1;

    for (i = 0; i < 6; i++) {
        close = close && fabs(sd_philox_normal(0, 0, i) - torch[i]) < 6e-5;
    }

    ok(close, "noise is torch's on CUDA");

    close = 1;

    for (i = 1; i < 20000; i++) {
        v = i / 20000.0;
        close = close && fabs(sd_philox_log(v) - log(v)) < 1e-14
                          + 4e-16 * fabs(log(v))
                && fabs(sd_philox_sin(v) - sin(6.28318530717958647692 * v))
                   < 2e-15;
    }

    close = close && fabs(sd_philox_log(0x1p-33) - log(0x1p-33)) < 1e-14
            && sd_philox_log(1 - 0x1p-33) < 0;

    ok(close, "noise: logarithm and sine");

    sum = 0;
    square = 0;

    for (i = 0; i < 100000; i++) {
        v = sd_philox_normal(1234567890123, 7, i);
        sum += v;
        square += v * v;
    }

    ok(fabs(sum / 100000) < 0.015 && fabs(square / 100000 - 1) < 0.02,
       "noise is normal");
}


int
main(void)
{
    test_philox();

    return done();
}
