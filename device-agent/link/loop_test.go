package link

import (
	"context"
	"crypto"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/protocol"
	"pgregory.net/rapid"
)

// opaque is a signer of which nothing but signatures can be had.
type opaque struct{ crypto.Signer }

func TestBackoffStaysUnderItsDoublingCeiling(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Backoff{
			Base: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "base")),
			Cap:  time.Duration(rapid.Int64Range(0, int64(24*time.Hour)).Draw(t, "cap")),
		}
		base, limit := b.Base, b.Cap
		if base == 0 {
			base = DefaultBase
		}
		if limit == 0 {
			limit = DefaultCap
		}
		want := min(base, limit)
		for range rapid.IntRange(0, 200).Draw(t, "failures") {
			if got := b.Ceiling(); got != want {
				t.Fatalf("ceiling %s, want %s", got, want)
			}
			if wait := b.Next(); wait < 0 || wait > want {
				t.Fatalf("wait %s is not within 0 and %s", wait, want)
			}
			want = min(2*want, limit)
		}
		b.Reset()
		if got := b.Ceiling(); got != min(base, limit) {
			t.Fatalf("ceiling after Reset is %s", got)
		}
	})
}

func TestBackoffUsesTheWholeRange(t *testing.T) {
	var waits []time.Duration
	for range 1000 {
		b := Backoff{Base: time.Second}
		waits = append(waits, b.Next())
	}
	// One in 2^500 that this fails for a fair draw.
	if low, high := slices.Min(waits), slices.Max(waits); low > 500*time.Millisecond || high < 500*time.Millisecond {
		t.Errorf("1000 waits within %s and %s, want them all over 0 to 1s", low, high)
	}
}

// fakeConnection lasts for a while of the test's clock, then breaks.
type fakeConnection struct{ done chan struct{} }

func (c *fakeConnection) Done() <-chan struct{}                         { return c.done }
func (c *fakeConnection) Err() error                                    { return io.EOF }
func (c *fakeConnection) Handshake() Handshake                          { return Handshake{} }
func (c *fakeConnection) Ask(context.Context) error                     { return nil }
func (c *fakeConnection) Notices() <-chan protocol.TLSNotice            { return nil }
func (c *fakeConnection) Listen(context.Context) error                  { return nil }
func (c *fakeConnection) Renewals() <-chan struct{}                     { return nil }
func (c *fakeConnection) Hello(context.Context) error                   { return nil }
func (c *fakeConnection) Publish(context.Context, string, []byte) error { return nil }
func (c *fakeConnection) Close(string)                                  {}

// attempts runs a link on the test's clock, each dial taking no time and
// giving what dial says, and returns when the attempts were made.
func attempts(t *testing.T, lasting time.Duration, config Config, dial func(n int) (connection, error)) []time.Duration {
	t.Helper()
	config.Address = "hub.example:8883"
	config.Credentials = func() (mtls.Credentials, error) { return mtls.Credentials{}, nil }
	l, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	var at []time.Duration
	start := time.Now()
	l.dial = func(context.Context) (connection, error) {
		at = append(at, time.Since(start))
		return dial(len(at))
	}
	ctx, cancel := context.WithTimeout(t.Context(), lasting)
	defer cancel()
	if err := l.Run(ctx); err != nil {
		t.Error(err)
	}
	return at
}

func gaps(at []time.Duration) (gaps []time.Duration) {
	for i := 1; i < len(at); i++ {
		gaps = append(gaps, at[i]-at[i-1])
	}
	return gaps
}

func TestUnreachableHubIsTriedLessAndLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := attempts(t, 24*time.Hour, Config{}, func(int) (connection, error) {
			return nil, &Failure{Kind: KindUnreachable}
		})
		if at[0] != 0 {
			t.Errorf("first attempt after %s, want at once", at[0])
		}
		ceiling := DefaultBase
		for i, gap := range gaps(at) {
			if gap > ceiling {
				t.Errorf("wait %d is %s, want at most %s", i, gap, ceiling)
			}
			ceiling = min(2*ceiling, DefaultCap)
		}
		// Half of five minutes on average.
		if n := len(at); n < 300 || n > 1200 {
			t.Errorf("%d attempts in a day", n)
		}
	})
}

func TestRefusedDeviceAsksAgainWithinOneAndThreeRetryTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := attempts(t, 24*time.Hour, Config{RefusedRetry: 5 * time.Minute}, func(int) (connection, error) {
			return nil, &Failure{Kind: KindRefused}
		})
		for i, gap := range gaps(at) {
			if gap < 5*time.Minute || gap > 15*time.Minute {
				t.Errorf("wait %d is %s", i, gap)
			}
		}
		if len(at) < 96 {
			t.Errorf("%d attempts in a day", len(at))
		}
	})
}

func TestRefusalThatMayPassIsRetriedSoonAndThenLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		config := Config{RefusedRetry: 5 * time.Minute, Ask: func(context.Context) Answer {
			asked++
			return Answer{Verdict: "pi-1 is suspended"}
		}}
		at := attempts(t, 24*time.Hour, config, func(n int) (connection, error) {
			if n == 20 { // resumed, and suspended once more
				c := &fakeConnection{done: make(chan struct{})}
				close(c.done)
				return c, nil
			}
			return nil, &Failure{Kind: KindRefused}
		})
		ceiling := 30 * time.Second
		for i, gap := range gaps(at) {
			if i == 19 { // after the connection
				ceiling = 30 * time.Second
				continue
			}
			if i == 20 && gap >= ceiling/2 && gap <= 2*ceiling { // with others, so the question waited
				ceiling *= 2
				continue
			}
			if gap < ceiling/2 || gap > ceiling {
				t.Errorf("wait %d is %s, want %s to %s", i, gap, ceiling/2, ceiling)
			}
			ceiling = min(2*ceiling, 15*time.Minute)
		}
		if asked < len(at)-2 {
			t.Errorf("asked %d times in %d attempts", asked, len(at))
		}
	})
}

func TestRefusalForGoodOrWithoutAnAnswerKeepsItsPace(t *testing.T) {
	for name, answer := range map[string]Answer{"for good": {Verdict: "pi-1 is revoked", ForGood: true}, "nobody answers": {}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				at := attempts(t, 24*time.Hour, Config{RefusedRetry: 5 * time.Minute, Ask: func(context.Context) Answer { return answer }}, func(int) (connection, error) {
					return nil, &Failure{Kind: KindRefused, Advice: "ask somebody"}
				})
				for i, gap := range gaps(at) {
					if gap < 5*time.Minute || gap > 15*time.Minute {
						t.Errorf("wait %d is %s", i, gap)
					}
				}
			})
		})
	}
	f := &Failure{Kind: KindRefused, Reason: "refused", Advice: "ask somebody"}
	if f = f.answered(Answer{}); f.Error() != "refused: ask somebody" || f.mayPass {
		t.Errorf("without an answer: %+v", f)
	}
	if f = f.answered(Answer{Verdict: "pi-1 is suspended"}); f.Error() != "refused: the hub says: pi-1 is suspended" || !f.mayPass {
		t.Errorf("with one: %+v", f)
	}
}

func TestDevicesThatAreCutOffTogetherDontAskTogether(t *testing.T) {
	ask := func(t *testing.T, served bool) (delay time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			var refused time.Time
			ctx, enough := context.WithCancel(t.Context())
			defer enough()
			config := Config{RefusedRetry: 5 * time.Minute, Ask: func(context.Context) Answer {
				delay = time.Since(refused)
				enough()
				return Answer{}
			}}
			config.Address = "hub.example:8883"
			config.Credentials = func() (mtls.Credentials, error) { return mtls.Credentials{}, nil }
			l, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			l.dial = func(context.Context) (connection, error) {
				if served {
					served = false
					c := &fakeConnection{done: make(chan struct{})}
					close(c.done)
					return c, nil
				}
				refused = time.Now()
				return nil, &Failure{Kind: KindRefused}
			}
			if err := l.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		return delay
	}
	if delay := ask(t, false); delay != 0 {
		t.Errorf("a device that was never in asks after %s, and somebody stands before it", delay)
	}
	var delays []time.Duration
	for range 100 {
		delays = append(delays, ask(t, true))
	}
	// One in 2^100 that this fails for a fair draw.
	if low, high := slices.Min(delays), slices.Max(delays); low > 15*time.Second || high < 15*time.Second || high > 30*time.Second {
		t.Errorf("100 devices ask after %s to %s, want that all over 0 to 30s", low, high)
	}
}

func TestOnlyARefusalIsAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts(t, time.Hour, Config{Ask: func(context.Context) Answer {
			t.Error("the hub was asked")
			return Answer{}
		}}, func(n int) (connection, error) {
			return nil, &Failure{Kind: []Kind{KindUnreachable, KindUntrusted, KindCredentials, KindLeaf}[n%4]}
		})
	})
}

// listening is a connection that the hub asks for a renewal over, once it listens.
type listening struct {
	fakeConnection
	since    time.Time
	listened time.Duration // 0: not yet
	renewals chan struct{}
}

func (c *listening) Renewals() <-chan struct{} { return c.renewals }

func (c *listening) Listen(context.Context) error {
	c.listened = time.Since(c.since)
	c.renewals <- struct{}{}
	return nil
}

func TestConnectionThatHoldsListensForRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		due := 0
		c := &listening{fakeConnection: fakeConnection{done: make(chan struct{})}, since: time.Now(), renewals: make(chan struct{}, 1)}
		attempts(t, time.Hour, Config{RenewalDue: func() { due++ }}, func(int) (connection, error) { return c, nil })
		if c.listened < 30*time.Second || c.listened > time.Minute || due != 1 {
			t.Errorf("listened after %s, told %d times", c.listened, due)
		}
		c = &listening{fakeConnection: fakeConnection{done: make(chan struct{})}, since: time.Now(), renewals: make(chan struct{}, 1)}
		attempts(t, time.Hour, Config{}, func(int) (connection, error) { return c, nil })
		if c.listened != 0 {
			t.Error("who renews nothing pays for a subscription")
		}
	})
}

func TestHubThatAcceptsAndCutsIsBackedOffFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := attempts(t, 24*time.Hour, Config{}, func(int) (connection, error) {
			c := &fakeConnection{done: make(chan struct{})}
			close(c.done)
			return c, nil
		})
		if len(at) > 1200 {
			t.Errorf("%d attempts in a day, though no connection lasted", len(at))
		}
	})
}

func TestStableConnectionForgivesFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stableEnded time.Duration
		start := time.Now()
		at := attempts(t, 10*time.Hour, Config{}, func(n int) (connection, error) {
			if n != 40 { // the ceiling is five minutes by then
				return nil, &Failure{Kind: KindUnreachable}
			}
			c := &fakeConnection{done: make(chan struct{})}
			time.AfterFunc(time.Minute, func() { close(c.done) })
			stableEnded = time.Since(start) + time.Minute
			return c, nil
		})
		if wait := at[40] - stableEnded; wait > DefaultBase {
			t.Errorf("waited %s after a stable connection, want at most %s", wait, DefaultBase)
		}
	})
}

func TestErrorOfAnyDialIsAFailure(t *testing.T) {
	cause := errors.New("cause")
	if f := asFailure(cause); f.Reason != "cause" || !errors.Is(f, cause) || f.Slow() {
		t.Errorf("%+v", f)
	}
}
