package label

import (
	"context"
	"fmt"
)

// queueLength is how many labels wait for the printer: a shift's worth of a slow one.
const queueLength = 256

// Queue prints labels one after the other, while boards go on. Run it once.
type Queue struct {
	target  Target
	load    func(id string) (*Label, error)
	report  func(id string, err error)
	waiting chan string
}

// NewQueue returns a queue to that target. load makes the label of an ID; report is told
// of each that was printed (nil) or wasn't, from Run's goroutine.
func NewQueue(target Target, load func(id string) (*Label, error), report func(id string, err error)) *Queue {
	return &Queue{target: target, load: load, report: report, waiting: make(chan string, queueLength)}
}

// Add has the label of the ID printed. It doesn't block: the error says that too many
// wait.
func (q *Queue) Add(id string) error {
	select {
	case q.waiting <- id:
		return nil
	default:
		return fmt.Errorf("the label of %s was not printed: %d wait for the printer already", id, queueLength)
	}
}

// Run prints until ctx ends. What waits then is not printed; `provisioning label` does.
func (q *Queue) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case id := <-q.waiting:
			l, err := q.load(id)
			if err == nil {
				err = q.target.Send(ctx, l)
			}
			q.report(id, err)
		}
	}
}
