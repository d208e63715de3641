package project_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// counting is a registry that counts questions and answers what answer says.
type counting struct {
	asked  atomic.Int64
	answer func() (*project.Project, error)
}

func (c *counting) ByToken(context.Context, string) (*project.Project, error) {
	c.asked.Add(1)
	return c.answer()
}

func (c *counting) ByID(ctx context.Context, _ int64) (*project.Project, error) {
	return c.ByToken(ctx, "")
}

func (c *counting) Authenticate(ctx context.Context, _ project.Credential) (*project.Project, error) {
	return c.ByToken(ctx, "")
}

func TestAnswersAreBelievedForTheirTimeOnly(t *testing.T) {
	ctx := context.Background()
	now := time.Unix(0, 0)
	good := &project.Project{ID: 1}
	reg := &counting{answer: func() (*project.Project, error) { return good, nil }}
	c := project.NewCache(reg, 10*time.Second, 2, func() time.Time { return now })
	ask := func(secret string, want int64) {
		t.Helper()
		_, _ = c.Authenticate(ctx, project.Credential{Username: "u", Secret: secret}) // how often it asks is the point
		if n := reg.asked.Load(); n != want {
			t.Fatalf("the registry was asked %d times, want %d", n, want)
		}
	}
	ask("a", 1)
	ask("a", 1)
	ask("b", 2) // another secret is another question
	now = now.Add(10 * time.Second)
	ask("a", 3)
	reg.answer = func() (*project.Project, error) { return nil, fault.New(fault.Unauthenticated, "X", "x") }
	ask("wrong", 4)
	ask("wrong", 4)
	now = now.Add(time.Second) // a refusal is believed for a tenth of the time
	ask("wrong", 5)
	reg.answer = func() (*project.Project, error) { return nil, fault.New(fault.Unavailable, "X", "x") }
	ask("later", 6)
	ask("later", 7) // no answer is not an answer
}

func TestCallersThatAskTogetherShareOneQuestion(t *testing.T) {
	release := make(chan struct{})
	reg := &counting{answer: func() (*project.Project, error) { <-release; return &project.Project{ID: 1}, nil }}
	c := project.NewCache(reg, time.Second, 10, func() time.Time { return time.Unix(0, 0) })
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if p, err := c.ByID(context.Background(), 1); err != nil || p.ID != 1 {
				t.Error(p, err)
			}
		})
	}
	close(release)
	wg.Wait()
	if n := reg.asked.Load(); n != 1 {
		t.Errorf("the registry was asked %d times by 10 callers", n)
	}
}
