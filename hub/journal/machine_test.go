package journal

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Any order of appends, checkpoints, failures, kills, power cuts and restarts: what was told durable stays, what was told
// failed stays away, and the journal always opens.
func TestNoHistoryLosesWhatIsDurable(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		m := newMemory()
		c := inMemory(m)
		c.SegmentSize = rapid.Int64Range(2, 5).Draw(r, "pages") * pageSize
		if err := Create(c); err != nil {
			r.Fatal(err)
		}
		l := &ledger{}
		var j *Journal
		var maybe []Position // checkpoints whose call failed
		reopen := func() {
			c.FS = m
			var found []record
			var err error
			if j, found, err = opened(c); err != nil {
				r.Fatalf("it doesn't open: %v", err)
			}
			if err := l.settle(found, maybe...); err != nil {
				r.Fatal(err)
			}
			maybe = nil
		}
		reopen()
		defer func() { _ = j.Close() }()
		r.Repeat(map[string]func(*rapid.T){
			"append": func(r *rapid.T) {
				for range rapid.IntRange(1, 5).Draw(r, "records") {
					_ = l.append(j, rapid.SampledFrom([]int{0, 1, 50, 800, 4000, 9000}).Draw(r, "size"))
				}
			},
			"settle down": func(*rapid.T) { l.wait(t) },
			"checkpoint": func(r *rapid.T) {
				last, at := j.Last(), j.Stats().Checkpoint
				if last < at {
					return
				}
				p := Position(rapid.Uint64Range(uint64(at), uint64(last)+1).Draw(r, "at"))
				if j.Checkpoint(p) == nil {
					// One that failed may be in force until something else is written.
					l.checkpoint = p
					maybe = slices.DeleteFunc(maybe, func(failed Position) bool { return failed <= p })
				} else {
					maybe = append(maybe, p)
				}
			},
			"read": func(r *rapid.T) {
				l.wait(t)
				if j.Stats().Refusing != nil {
					return
				}
				m.arm(fault{})
				from := rapid.Uint64Range(uint64(j.First()), uint64(j.Last())+1).Draw(r, "from")
				reader := j.Read(Position(from))
				defer reader.Close()
				for _, e := range l.entries {
					if e.verdict != durable || e.position < Position(from) {
						continue
					}
					p, b, err := reader.Next(t.Context())
					if err != nil || p != e.position || string(b) != e.text {
						r.Fatalf("record %d was read as %d: %v", e.position, p, err)
					}
				}
				if p, _, err := reader.Next(done()); err == nil {
					r.Fatalf("record %d is one that wasn't durable", p)
				}
			},
			"break the disk": func(r *rapid.T) {
				m.arm(fault{
					at:     rapid.IntRange(1, 30).Draw(r, "call"),
					sticky: rapid.Bool().Draw(r, "for good"),
					effect: rapid.Bool().Draw(r, "with effect"),
				})
			},
			"mend the disk": func(*rapid.T) { m.arm(fault{}) },
			"close": func(r *rapid.T) {
				err := j.Close()
				m.arm(fault{})
				if err == nil {
					if c, err := check(m, "j", nil); err != nil || !c.Clean {
						r.Fatalf("closed, and then %+v, %v", c, err)
					}
				}
				reopen()
			},
			"kill": func(r *rapid.T) {
				m.kill()
				_ = j.Close()
				m = m.survivor()
				reopen()
			},
			"cut the power": func(r *rapid.T) {
				m.kill()
				_ = j.Close()
				seed := rapid.Uint64().Draw(r, "seed")
				m = m.powerCut(some(rand.New(rand.NewPCG(seed, seed)), rapid.Float64Range(0, 1).Draw(r, "written")))
				reopen()
			},
		})
	})
}
