package engine

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// UserOutcome is what happened to one user in a run.
type UserOutcome struct {
	// User is the user's number; Identifier the one at the destination, empty
	// for a user who was left out.
	User       uint64
	Identifier string
	// Op is 0 for a user who was left out.
	Op       channel.Op
	Outcome  store.Outcome
	Reason   string
	Warnings []string
}

// Users lists what happened to the users of a run, batch by batch and then
// those left out by reason. only, when not 0, keeps one outcome. token is empty
// or what the previous call returned; the returned one is empty at the end.
func (e *Engine) Users(ctx context.Context, run int64, only store.Outcome, token string, size int) (out []UserOutcome, next string, err error) {
	batch, pos, reason, user, err := parseToken(token)
	if err != nil {
		return nil, "", err
	}
	if reason == "" && only != store.Skipped {
		heads, err := e.store.BatchHeads(ctx, run)
		if err != nil {
			return nil, "", err
		}
		for _, h := range heads {
			if h.Index < batch || only != 0 && only != store.Sent && h.Clean {
				continue
			}
			if h.Index > batch {
				pos = 0
			}
			b, err := e.store.BatchUsers(ctx, run, h.Index)
			if err != nil {
				return nil, "", err
			}
			for i := pos; i < len(b.Entries); i++ {
				o, why := b.Result.Of(i)
				if only != 0 && o != only {
					continue
				}
				if len(out) == size {
					return out, fmt.Sprintf("b:%d:%d", h.Index, i), nil
				}
				out = append(out, UserOutcome{User: b.Entries[i].User, Identifier: b.Entries[i].Identifier, Op: b.Op, Outcome: o, Reason: why, Warnings: Warnings(b.Flags[i] | b.Result.FlagsOf(i))})
			}
			pos = 0
		}
	}
	if only != 0 && only != store.Skipped {
		return out, "", nil
	}
	skips, err := e.store.Skips(ctx, run)
	if err != nil {
		return nil, "", err
	}
	reasons := make([]string, 0, len(skips))
	for r := range skips {
		reasons = append(reasons, r)
	}
	slices.Sort(reasons)
	for _, r := range reasons {
		if r < reason {
			continue
		}
		it := skips[r].Iterator()
		if r == reason {
			it.AdvanceIfNeeded(user)
		}
		for it.HasNext() {
			u := it.Next()
			if len(out) == size {
				return out, fmt.Sprintf("s:%s:%d", r, u), nil
			}
			out = append(out, UserOutcome{User: u, Outcome: store.Skipped, Reason: r})
		}
	}
	return out, "", nil
}

func parseToken(token string) (batch, pos int, reason string, user uint64, err error) {
	if token == "" {
		return 0, 0, "", 0, nil
	}
	p := strings.Split(token, ":")
	bad := fault.Field("page_token", "is not one that this call returned")
	if len(p) != 3 {
		return 0, 0, "", 0, bad
	}
	switch p[0] {
	case "b":
		var e1, e2 error
		batch, e1 = strconv.Atoi(p[1])
		pos, e2 = strconv.Atoi(p[2])
		if e1 != nil || e2 != nil || batch < 0 || pos < 0 {
			return 0, 0, "", 0, bad
		}
		return batch, pos, "", 0, nil
	case "s":
		u, e := strconv.ParseUint(p[2], 10, 64)
		if e != nil || p[1] == "" {
			return 0, 0, "", 0, bad
		}
		return 0, 0, p[1], u, nil
	}
	return 0, 0, "", 0, bad
}
