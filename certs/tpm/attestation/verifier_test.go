package attestation

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a verifier whose secrets the test knows, so that it can answer as a TPM would.
type bench struct {
	*Verifier
	now time.Time
}

func newBench(f *forger, change func(*Config)) *bench {
	b := &bench{now: testTime}
	b.Verifier = f.verifier(func(c *Config) {
		c.Now = func() time.Time { return b.now }
		if change != nil {
			change(c)
		}
	})
	return b
}

// answer is the right answer to an open challenge.
func (b *bench) answer(id string) Answer {
	c := b.challenges.byID[id]
	return NewAnswer(id, c.secret, c.statement, binding)
}

func TestChallengeIsAnsweredOnceAndInTime(t *testing.T) {
	f := newForger(t)
	b := newBench(f, nil)
	begin := func() Challenge { return must(b.Begin(f.request(), binding)) }
	finish := func(a Answer) error {
		_, err := b.Finish(a, binding)
		return err
	}
	a := b.answer(begin().ID)
	wantReason(t, "right", finish(a), "", "")
	wantReason(t, "twice", finish(a), Answered, "")

	a = b.answer(begin().ID)
	b.now = b.now.Add(time.Minute - 1)
	wantReason(t, "just in time", finish(a), "", "")
	a = b.answer(begin().ID)
	b.now = b.now.Add(time.Minute)
	wantReason(t, "late", finish(a), Expired, "")
	wantReason(t, "late and twice", finish(a), Answered, "")

	a = b.answer(begin().ID)
	b.now = b.now.Add(-2*time.Minute - 1)
	wantReason(t, "after the clock was set back", finish(a), Expired, "")

	wrong := b.answer(begin().ID)
	wrong.Proof = bytes.Clone(wrong.Proof)
	wrong.Proof[0] ^= 1
	right := b.answer(wrong.ID)
	wantReason(t, "wrong", finish(wrong), WrongProof, "")
	wantReason(t, "right after wrong", finish(right), Answered, "")

	a = b.answer(begin().ID)
	a.ID = fmt.Sprintf("%032x", 1)
	wantReason(t, "unknown", finish(a), UnknownChallenge, "")
	wantReason(t, "nothing", finish(Answer{}), Malformed, "")

	// Begun on one connection, answered on another, by a TPM that sees only the second.
	c := must(b.Begin(f.request(), bytes.Repeat([]byte("d"), 32)))
	wantReason(t, "begun elsewhere", finish(b.answer(c.ID)), Relayed, "")
	if _, err := b.Finish(b.answer(begin().ID), nil); err == nil {
		t.Error("finished without a binding")
	}
}

func TestOpenChallengesAreBounded(t *testing.T) {
	f, other := newForger(t), newForger(t)
	b := newBench(f, func(c *Config) {
		c.Open = 10
		c.Roots = append(c.Roots, other.root)
	})
	r := f.request()
	for range openPerEK {
		must(b.Begin(r, binding))
	}
	_, err := b.Begin(r, binding)
	wantReason(t, "too many of one TPM", err, Busy, "this TPM")
	ids := []string{must(b.Begin(other.request(), binding)).ID, must(b.Begin(other.request(), binding)).ID}
	_, err = b.Begin(other.request(), binding)
	wantReason(t, "too many", err, Busy, "10 challenges")

	// A spent one makes room, and is then forgotten.
	spent := b.answer(ids[0])
	must(b.Finish(spent, binding))
	must(b.Begin(other.request(), binding))
	_, err = b.Finish(spent, binding)
	wantReason(t, "forgotten", err, UnknownChallenge, "")

	b.now = b.now.Add(time.Minute)
	must(b.Begin(r, binding))
	b.now = b.now.Add(2 * time.Minute)
	must(b.Begin(r, binding))
	if n := len(b.challenges.byID); n != 1 || len(b.challenges.open) != 1 {
		t.Errorf("%d challenges are remembered, %v are open", n, b.challenges.open)
	}
}

func TestOneAnswerManyTimesAtOnceCountsOnce(t *testing.T) {
	f := newForger(t)
	b := newBench(f, nil)
	a := b.answer(must(b.Begin(f.request(), binding)).ID)
	var mu sync.Mutex // guards accepted
	accepted := 0
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := b.Finish(a, binding); err == nil {
				mu.Lock()
				accepted++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if accepted != 1 {
		t.Errorf("accepted %d times", accepted)
	}
}

// Whatever happens in whatever order, a challenge yields evidence at most once, only to
// its own answer, in time and on its connection, and nothing is remembered for ever.
func TestChallengesObeyTheirRules(t *testing.T) {
	boards := []*forger{newForger(t), newForger(t)}
	requests := []Request{boards[0].request(), boards[1].request()}
	rapid.Check(t, func(t *rapid.T) {
		b := newBench(boards[0], func(c *Config) { c.Open = 12; c.Roots = append(c.Roots, boards[1].root) })
		type made struct {
			answer  Answer
			board   int
			expires time.Time
			spent   bool
		}
		var all []*made
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				board := rapid.IntRange(0, 1).Draw(t, "board")
				c, err := b.Begin(requests[board], binding)
				if err != nil {
					if r, ok := reasonOf(err); !ok || r != Busy {
						t.Fatal(err)
					}
					return
				}
				all = append(all, &made{answer: b.answer(c.ID), board: board, expires: c.Expires})
			},
			"wait": func(t *rapid.T) {
				b.now = b.now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
			},
			"finish": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip()
				}
				m := rapid.SampledFrom(all).Draw(t, "challenge")
				answer, channel, right := m.answer, binding, true
				switch rapid.IntRange(0, 4).Draw(t, "mistake") {
				case 0:
					other := rapid.SampledFrom(all).Draw(t, "other").answer
					right = other.ID == answer.ID
					other.ID = answer.ID
					answer = other
				case 1:
					channel, right = bytes.Repeat([]byte("x"), 32), false
				case 2:
					answer.Proof, right = make([]byte, 32), false
				}
				evidence, err := b.Finish(answer, channel)
				switch acceptable := right && !m.spent && b.now.Before(m.expires); {
				case acceptable && err != nil:
					t.Fatalf("refused: %v", err)
				case !acceptable && err == nil:
					t.Fatal("accepted")
				case acceptable && !boards[m.board].key.PublicKey.Equal(evidence.CSR.PublicKey):
					t.Fatal("evidence of the other board")
				}
				if _, ok := reasonOf(err); err != nil && !ok {
					t.Fatalf("%v is no refusal", err)
				}
				m.spent = true
			},
			"": func(t *rapid.T) {
				if len(b.challenges.byID) > 12 {
					t.Fatalf("%d challenges are remembered", len(b.challenges.byID))
				}
				open := 0
				for _, n := range b.challenges.open {
					if n <= 0 || n > openPerEK {
						t.Fatalf("%d open challenges of one TPM", n)
					}
					open += n
				}
				for _, c := range b.challenges.byID {
					if !c.spent {
						open--
					}
				}
				if open != 0 {
					t.Fatalf("the count of open challenges is off by %d", open)
				}
			},
		})
	})
}

func reasonOf(err error) (Reason, bool) {
	r, ok := err.(*Refusal)
	if !ok {
		return "", false
	}
	return r.Reason, true
}

func BenchmarkBegin(b *testing.B) {
	f := newForger(b)
	r := f.request()
	v := newBench(f, nil)
	for b.Loop() {
		c := must(v.Begin(r, binding))
		must(v.Finish(v.answer(c.ID), binding))
	}
}
