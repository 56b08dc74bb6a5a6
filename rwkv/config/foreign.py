"""What Lightning and DeepSpeed call the options of a group, and what is meant here."""

_FP16 = "there is no fp16 here, whose range RWKV's squares leave; set precision=bf16"

OF_OTHERS = {
    "precision": {
        **dict.fromkeys(("32", "32-true", "float32"), "that is precision=fp32 here"),
        **dict.fromkeys(("64", "64-true", "float64", "double"), "that is precision=fp64 here"),
        **dict.fromkeys(("16", "16-mixed", "16-true", "fp16", "float16", "half"), _FP16),
        "bf16-true": "weights and moments in bf16 alone lose small updates; set precision=bf16, which keeps both in fp32 beside bf16 weights",
    },
    "strategy": {
        **{f"deepspeed_stage_{stage}": f"that is strategy=ds{stage} here" for stage in ("1", "2", "2_offload", "3", "3_offload")},
        "deepspeed_stage_3_offload_nvme": "that is strategy=ds3_nvme here",
        "deepspeed": "which stage? set strategy=ds1, ds2 or ds3",
        "single_device": "that is strategy=auto here",
    },
}
