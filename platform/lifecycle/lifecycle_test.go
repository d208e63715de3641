package lifecycle_test

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/cohortbridge/cohortbridge/platform/lifecycle"
)

func TestPartsStopInReverseWhenOneFailsAndAllErrorsAreTold(t *testing.T) {
	var g lifecycle.Group
	var stopped []string
	stopErr, cause := errors.New("stop"), errors.New("cause")
	for _, name := range []string{"a", "b", "c"} {
		g.OnStop(name, func(context.Context) error {
			stopped = append(stopped, name)
			if name == "b" {
				return stopErr
			}
			return nil
		})
	}
	g.Go("c", func() error { return cause })
	err := g.Wait(t.Context())
	if !errors.Is(err, cause) || !errors.Is(err, stopErr) {
		t.Fatalf("err = %v, want both", err)
	}
	if want := []string{"c", "b", "a"}; !reflect.DeepEqual(stopped, want) {
		t.Fatalf("stopped %v, want %v", stopped, want)
	}
}

func TestWaitStopsAtTheEndOfTheContextAndGivesPartsTheirTime(t *testing.T) {
	var g lifecycle.Group
	ctx, cancel := context.WithCancel(t.Context())
	g.OnStop("a", func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); !ok || ctx.Err() != nil {
			return errors.New("no time to stop")
		}
		return nil
	})
	cancel()
	if err := g.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}
