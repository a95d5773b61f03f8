// The words of widgets and sidebar. Node names and tooltips are in ../locales.
import { app } from "../../scripts/app.js";

const ZH = {
  "Accept": "采纳", "Reject": "否决", "Use these": "使用所选", "All go on": "全部通过", "Reason (optional)": "理由（可选）",
  "Waiting for you: the whole queue waits.": "等待你的处理：整个队列都在等待。",
  "Goes on by itself at": "自动继续时间", "Edited text is learnt from.": "修改后的文字会用于学习。",
  "Kept": "已保存", "Time is over: it went on unchanged.": "已超时：按原样继续。", "Rejected: what follows was not run.": "已否决：后续节点未运行。",
  "Done": "完成", "Run the workflow to see something here.": "运行工作流后在此显示。", "Connected": "已连接", "Not connected": "未连接",
  "Project": "项目", "Live version": "当前版本", "base model": "基础模型", "New feedback for the next run": "等待下次训练的反馈",
  "Waiting to be delivered": "等待发送", "Capture edits": "记录修改", "on: edits between runs are kept": "开：记录两次运行之间的修改",
  "off: nothing is captured by itself": "关：不会自动记录", "Roll back": "回滚", "Service": "服务", "Token": "令牌", "Save": "保存",
  "Excluded node classes": "排除的节点类型", "Last answers": "最近的回答", "Last images": "最近的图片", "Refused by the service": "被服务拒绝",
  "Try again": "重试", "Go back to the version before?": "回到上一个版本？", "What changed": "变化", "Nothing yet.": "暂无。",
  "Loop": "训练循环", "Everything stays on this machine and your service.": "所有数据只保存在本机和你的服务中。",
};

export function t(text) {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return locale.startsWith("zh") ? ZH[text] ?? text : text;
}
