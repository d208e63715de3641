package channel

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
)

// customList upserts profiles by upload and then puts the whole list in the
// segment's place: it needs nothing enabled on the account.
type customList struct{ profiles }

// NewCustomList returns the custom list channel.
func NewCustomList(cfg Config) Publisher {
	return &customList{profiles{cfg: cfg, columns: prepare(cfg.Columns)}}
}

// Name implements Channel.
func (c *customList) Name() string { return "CUSTOM_LIST" }

// Traits implements Channel.
func (c *customList) Traits() Traits {
	return Traits{MaxRecords: clevertap.MaxUploadRecords, MaxBytes: clevertap.MaxUploadBytes - 64, Concurrency: 15, Group: "upload"}
}

// Removal implements Channel.
func (c *customList) Removal(string) []byte { return nil }

// Send implements Channel.
func (c *customList) Send(ctx context.Context, _ Segment, b Batch) ([]Refusal, error) {
	return c.upload(ctx, b.Records)
}

// PublishLine implements Publisher.
func (c *customList) PublishLine(identifier string) string {
	if strings.ContainsAny(identifier, "\",\r\n") || identifier[0] == ' ' {
		return `i,"` + strings.ReplaceAll(identifier, `"`, `""`) + "\"\n"
	}
	return "i," + identifier + "\n"
}

// Publish implements Publisher.
func (c *customList) Publish(ctx context.Context, s Segment, file io.ReaderAt, size int64) (int, error) {
	calls := 0
	url, err := "", error(nil)
	// Once with no content type, as the documentation shows; a signature that
	// covers one answers 403, and then a fresh URL is tried with text/csv.
	for _, contentType := range []string{"", "text/csv"} {
		calls++
		if url, err = c.cfg.Client.ListUploadURL(ctx, c.cfg.Account); err != nil {
			return calls, err
		}
		calls++
		err = c.cfg.Client.PutList(ctx, url, io.NewSectionReader(file, 0, size), size, contentType)
		var ce *clevertap.Error
		if errors.As(err, &ce) && ce.Class == clevertap.StaleURL {
			continue
		}
		break
	}
	if err != nil {
		return calls, err
	}
	calls++
	_, err = c.cfg.Client.CompleteList(ctx, c.cfg.Account, clevertap.List{
		Name: s.Name, Filename: "cohort-" + s.CohortID + ".csv", Creator: "cohortbridge", URL: url,
	})
	return calls, err
}
